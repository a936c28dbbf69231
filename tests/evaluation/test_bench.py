"""Timing in turn, counting by the profiler's own count, and `bench` as a user runs it."""

import json
import pickle
import shutil

import fresh
import pytest
import torch
from conftest import (
    SMALL,
    masks_of,
    must_refuse,
    must_run,
    tiny_prunable,
    without_branches,
)
from torch.utils.flop_counter import FlopCounterMode

from disp_llm.commands.bench import in_own_process
from disp_llm.config.errors import InputError
from disp_llm.config.parts import PlaceConfig
from disp_llm.evaluation import timing
from disp_llm.evaluation.benchmark import Counted, compare, count, side_by_side
from disp_llm.evaluation.timing import Pair, Workload, in_turn, runner, speed_against
from disp_llm.exporter.cutting import compact_model
from disp_llm.exporter.folders import weight_bytes
from disp_llm.masks.budget import Budget
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks, Selection
from disp_llm.models.kv_cache import with_cache


def pruned(model_type: str, branches: bool = False) -> PrunableModel:
    """Random widths; with `branches`, a block without an attention and one without an MLP."""
    target = tiny_prunable(model_type, branches=branches)
    masks = without_branches(target) if branches else masks_of("random", target.layout)
    return PrunableModel(compact_model(target, masks), target.family)


@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "phi", "opt", "gpt2"])
def test_counted_operations_of_the_linear_layers_are_what_torch_counts(model_type, branches):
    target = pruned(model_type, branches)
    model = target.model
    workload = Workload("prefill", 16, 2)
    with FlopCounterMode(display=False) as counter:
        model(torch.ones(2, 16, dtype=torch.long), logits_to_keep=1)
    counted = counter.get_flop_counts()["Global"]
    products = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm)  # attention is fused
    linear = sum(counted.get(product, 0) for product in products)
    head = 2 * 2 * model.get_output_embeddings().weight.numel()
    assert linear == count(target, workload).block_flops + head


def test_all_operations_are_what_torch_counts():
    """Attention too, whose every pair of tokens its plain implementation computes."""
    target = pruned("llama")
    target.model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        target.model(torch.ones(2, 16, dtype=torch.long), logits_to_keep=1)
    pairs, all_pairs = 16 * 17 // 2, 16 * 16
    blocks = target.model.model.layers
    inside = sum(4 * 2 * block.self_attn.q_proj.out_features for block in blocks)
    counted = count(target, Workload("prefill", 16, 2)).flops
    assert counter.get_total_flops() - counted == inside * (all_pairs - pairs)


def test_a_decoded_token_follows_as_many_as_were_asked_for(monkeypatch):
    """Every time anew."""
    model, seen = tiny_prunable("llama").model, []

    def timed(model, tokens, cache):
        seen.append((tuple(tokens.shape), cache.get_seq_length()))
        with torch.inference_mode():
            model(tokens, **with_cache(model, cache))
        return 0.1

    monkeypatch.setattr(timing, "_timed", timed)
    once = runner(model, Workload("decode", 20, 2))
    for _ in range(2):
        once()
    assert seen == [((2, 1), 20)] * 2


def test_weights_are_timed_as_they_are_loaded():
    model, seen = tiny_prunable("llama").model, []
    model.register_forward_pre_hook(
        lambda module, args: seen.append(all(p.requires_grad for p in module.parameters()))
    )
    runner(model, Workload("prefill", 8, 1))()
    assert seen == [True]
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_of_experts_those_count_that_tokens_use():
    """Without half of its experts a mixture does as much for a token, and is smaller."""
    target = tiny_prunable("qwen3_moe", experts=True)
    kept = torch.ones(target.layout.entries, dtype=torch.bool)
    for name, part in zip(target.layout.names, target.layout.split(kept), strict=True):
        if name.endswith(".experts") and len(part) > 2:
            part[len(part) // 2 :] = False
    masks = Masks(target.layout, kept, Selection(kept.float()))
    small = PrunableModel(compact_model(target, masks), target.family)
    assert small.block_parameters < 0.8 * target.block_parameters
    work = Workload("prefill", 16, 1)
    routers = 2 * 16 * sum(
        (len(row.weight) - len(less.weight)) * row.weight.shape[1]
        for row, less in zip(routers_of(target), routers_of(small), strict=True)
    )  # fmt: skip
    assert count(small, work).block_flops == count(target, work).block_flops - routers
    budget = Budget(target.layout, sites=target.layout.sites)
    for one, counts in ((target, torch.tensor(target.layout.lengths)), (small, masks.counts)):
        assert one.block_parameters_of(1) == budget.active_parameters(counts)
        assert one.block_parameters_of(1) < one.block_parameters_of(2) <= one.block_parameters
        read = count(one, Workload("decode", 1, 100)).bytes_read
        assert read >= one.block_parameters * one.dtype.itemsize


def routers_of(target: PrunableModel) -> list:
    """The routers of a mixture."""
    return [
        block.get_submodule(branch.experts.rows)
        for block, branch in target.present
        if branch.experts is not None
    ]


def test_a_sliding_window_is_all_that_is_read():
    """Of eight tokens a decoded one is one itself."""
    short, long = (tiny_prunable("gemma3_text", sliding_window=n) for n in (8, 1000))
    windows = short.model.config.layer_types.count("sliding_attention")
    assert windows > 0
    q, cached, decode = 32, 2 * (2 * 8), Workload("decode", 60, 2)
    less = count(long, decode).bytes_read - count(short, decode).bytes_read
    assert less == 2 * 4 * windows * cached * (60 - 7)
    assert count(long, decode).flops - count(short, decode).flops == 2 * windows * 4 * q * (61 - 8)
    prefill = Workload("prefill", 60, 1)
    pairs = 60 * 61 // 2 - (8 * 9 // 2 + 52 * 8)
    assert count(long, prefill).flops - count(short, prefill).flops == windows * 4 * q * pairs


@pytest.mark.parametrize("branches", [False, True])
def test_decode_reads_weights_once_and_the_cache_of_every_sequence(branches):
    target = pruned("llama", branches)
    one, four = (count(target, Workload("decode", 20, batch)) for batch in (1, 4))
    attentions = 2 if branches else 3
    cached = attentions * 2 * (2 * 8) * 20 * 4  # keys and values, KV width, tokens, bytes
    assert four.bytes_read - one.bytes_read == 3 * cached
    linear = sum(
        layer.weight.numel()
        for layer in target.model.modules()
        if isinstance(layer, torch.nn.Linear)
    )
    assert one.bytes_read == 4 * linear + cached


def test_tokens_a_second_are_those_of_all_sequences(monkeypatch):
    monkeypatch.setattr(timing, "_timed", lambda model, tokens, cache: 0.5)
    workloads = [Workload("prefill", 8, 3), Workload("decode", 8, 3)]
    rows, _ = side_by_side([pruned("llama")] * 2, ["first", "second"], workloads, rounds=1)
    assert [row["tokens_per_s"] for row in rows] == [48, 48, 6, 6]


def test_rounds_alternate_who_goes_first():
    calls: list[str] = []

    def run(name: str):
        def once() -> float:
            calls.append(name)
            return float(len(calls))

        return once

    times = in_turn([run("a"), run("b")], rounds=4)
    assert "".join(calls) == "aabb" + "abba" * 2
    assert times == [[5, 8, 9, 12], [6, 7, 10, 11]]


def test_a_speed_up_is_the_median_of_ratios_within_a_round():
    """A machine that is twice as slow in some rounds changes nothing."""
    disturbed = Pair([2.0, 4.0, 2.0, 4.0], [1.0, 2.0, 1.0, 2.0])
    counted = [Counted(flops, bytes_read=1, block_flops=1) for flops in (30, 10)]
    found = compare(Workload("prefill", 8, 1), disturbed, counted)
    assert found["speedup"] == 2
    assert found["speedup_quartiles"] == [2, 2]
    assert found["predicted_speedup"] == 3
    assert disturbed.share == 0.5
    assert Pair([2.0, 9.0], [3.0, 1.5]).least_share == 0.75


def test_prune_times_what_it_made(llama_folder, text_file, tmp_path, monkeypatch):
    """With a clock that makes every pruned model half as fast, to the millisecond."""
    folder, calls = tmp_path / "run", 0

    def timed(model: torch.nn.Module, tokens: torch.Tensor, cache: object) -> float:
        nonlocal calls
        calls += hasattr(model.config, "disp_llm")
        prefill = tokens.shape[1] > 1
        return (0.004 if prefill else 0.001) * (1 + hasattr(model.config, "disp_llm"))

    monkeypatch.setattr(timing, "_timed", timed)
    done = must_run(
        "prune", llama_folder, "--keep", 0.5, 1.0, "--method", "magnitude", "--text", text_file,
        "--output-dir", folder, *SMALL, "--rounds", 3,
    )  # fmt: skip
    half, whole = json.loads((folder / "result.json").read_text())["models"]
    assert calls == 2 * 2 * (timing.WARM_UP + 3)  # two models, two phases
    for phase, seconds in (("prefill", 4), ("decode", 1)):
        half_speed, whole_speed = half["speed"], whole["speed"]
        assert half_speed[f"{phase}_ms"] == pytest.approx(2 * seconds)
        assert half_speed[f"{phase}_original_ms"] == pytest.approx(seconds)
        for figure in ("speedup", "speedup_low", "speedup_high"):
            assert half_speed[f"{phase}_{figure}"] == whole_speed[f"{phase}_{figure}"] == 0.5
    said = " ".join(done.stdout.split())
    assert "prefill, up to 512 tokens" in said
    assert "×0.50 (0.50 to 0.50)" in said
    assert "no faster than the original on this machine: keep 0.5 prefill ×0.50" in said
    assert (folder / "report.html").read_text().count("×0.50 (0.50 to 0.50)") == 4


def test_one_round_is_its_own_quartiles_and_none_gives_no_figures():
    model = pruned("llama").model
    once = speed_against(model, model, 1)
    assert once["prefill_speedup_low"] == once["prefill_speedup"] == once["prefill_speedup_high"]
    assert speed_against(model, model, 0) == {}


IN_FRESH_PROCESS = """
import json, pickle, sys
from disp_llm.commands.bench import _load_and_run
print(json.dumps(_load_and_run(*pickle.load(open(sys.argv[1], "rb")))))
"""


@pytest.fixture
def fresh_processes(tmp_path, monkeypatch):
    """A fresh process for each model in place of a new interpreter, which takes six seconds to
    start."""

    def in_fresh_process(*asked) -> dict:
        path = tmp_path / "asked"
        path.write_bytes(pickle.dumps(asked))
        done = fresh.run(IN_FRESH_PROCESS, path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    monkeypatch.setattr("disp_llm.commands.bench.in_own_process", in_fresh_process)


def test_a_process_of_its_own_measures_or_says_why(llama_folder, tmp_path):
    machine = PlaceConfig("cpu", "float32")
    found = in_own_process(str(llama_folder), machine, 16)
    assert found["weight_bytes"] == weight_bytes(llama_folder)
    assert min(found["load_s"], found["peak_memory_bytes"]) > 0
    broken = shutil.copytree(llama_folder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(InputError) as refused:
        in_own_process(str(broken), machine, 16)
    assert refused.value.field == str(broken / "model.safetensors")


@pytest.mark.usefixtures("fresh_processes")
def test_bench_measures_a_folder_and_its_original(small_run, llama_folder):
    _, result = small_run
    folder = next(m["folder"] for m in result["models"] if m["share_asked"] == 0.5)
    done = must_run(
        "bench", folder, "--length", 16, 32, "--batch", 1, 2,
        "--context", 16, "--rounds", 3, "--dtype", "float32", "--device", "cpu", "--json",
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["against"] == str(llama_folder)
    assert [(c["phase"], c["length"], c["batch"]) for c in found["comparisons"]] == [
        ("prefill", 16, 1), ("prefill", 32, 1), ("decode", 16, 1), ("decode", 16, 2),
    ]  # fmt: skip
    for key in ("median_s", "tokens_per_s", "peak_memory_bytes"):
        assert all(row[key] > 0 for row in found["results"])
    dense, pruned_row = found["results"][:2]
    assert dense["block_flops"] > 1.9 * pruned_row["block_flops"]
    assert found["loading"][0]["weight_bytes"] > found["loading"][1]["weight_bytes"]
    assert found["speedup"]["prefill"] == found["comparisons"][1]["speedup"]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--rounds", "1"], "--rounds"),
        (["--length", "0"], "--length"),
        (["--against", "nowhere/none"], "nowhere/none"),
    ],
)
def test_bad_requests_are_one_line_that_names_the_flag(llama_folder, flags, named):
    against = [] if "--against" in flags else ["--against", llama_folder]
    done = must_refuse("bench", llama_folder, *against, *flags)
    assert named in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_what_was_not_pruned_has_no_original(llama_folder):
    done = must_refuse("bench", llama_folder)
    assert done.stderr.startswith("disp-llm: --against: nothing says what")


def test_neither_is_loaded_where_one_is_missing(llama_folder, monkeypatch):
    monkeypatch.delattr("disp_llm.commands.bench.in_own_process")
    done = must_refuse("bench", "nowhere/none", "--against", llama_folder)
    assert done.stderr.startswith("disp-llm: MODEL: ")
