"""Chunks of neighbours in the residual stream: kept or pruned together, exact, in fewer indices."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator

import pytest
import torch
import transformers
from conftest import (
    SMALL,
    byte_tokenizer,
    chunked_masks,
    kept_in,
    masks_of,
    must_refuse,
    must_run,
    problem_of,
    tiny_prunable,
    with_config,
)
from in_memory import export_folder
from safetensors.torch import load_file

from disp_llm.commands.planning import chunk_of
from disp_llm.commands.sizes import keep_by_penalty
from disp_llm.config.errors import InputError
from disp_llm.config.learning import LearnConfig, TrainingConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.evaluation.latency import SHAPES, masks_of_shape
from disp_llm.exporter.cutting import compact_model
from disp_llm.masks import layout as layouts
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.layout import CHUNKS, usual_chunk
from disp_llm.masks.masking import masked
from disp_llm.masks.selection import Masks, Selection
from disp_llm.methods import method_named

PROMPT = torch.arange(5, 25).unsqueeze(0)


@pytest.mark.parametrize("chunk", [2, 8])
def test_only_the_residual_stream_lies_in_chunks(chunk):
    layout = tiny_prunable("llama").layout
    scores = torch.randn(layout.entries)
    means = layout.by_chunks(scores, chunk)
    for name, part, before in zip(
        layout.names, layout.split(means), layout.split(scores), strict=True
    ):
        if name.endswith("mlp_mid"):
            assert torch.equal(part, before)
        else:
            wanted = before.view(-1, chunk).mean(1, keepdim=True).expand(-1, chunk).flatten()
            torch.testing.assert_close(part, wanted)
    assert torch.equal(layout.by_chunks(scores, 1), scores)


@pytest.mark.parametrize(("chunk", "align"), [(2, 1), (8, 1), (8, 16), (16, 8), (4, 6), (16, 16)])
@pytest.mark.parametrize("keep", [0.9, 0.6, 0.4])
def test_a_projection_divides_no_chunk_and_keeps_to_the_budget(chunk, align, keep):
    layout = tiny_prunable("llama").layout
    scores = torch.randn(layout.entries, generator=torch.Generator().manual_seed(3))
    budget = Budget(layout, chunk=chunk)
    kept = project(scores, budget, keep, align).kept
    parts = zip(layout.split(kept), layout.split(scores), layout.in_stream.tolist(), strict=True)
    for part, of_site, shared in parts:
        if not shared:
            continue
        chunks = part.view(-1, chunk)
        assert torch.equal(chunks.all(1), chunks.any(1))
        assert int(part.sum()) % math.lcm(chunk, align) == 0 or part.all()
        means = of_site.view(-1, chunk).mean(1)
        assert part.all() or means[chunks[:, 0]].min() > means[~chunks[:, 0]].max()
    group = float(budget.entry_costs.max()) * math.lcm(chunk, align)
    share = float(budget.keep(layout.counts(kept.long())))
    assert keep - group / budget.dense_block_parameters < share <= keep


def test_masks_know_their_chunks():
    layout = tiny_prunable("llama").layout
    assert masks_of("random", layout).chunk == 1
    assert masks_of("keep-all", layout).chunk == 1  # nothing is selected
    assert {chunked_masks(layout, chunk).chunk for chunk in (8, 16)} == {8, 16}
    assert chunked_masks(layout, 4).chunk == 1  # too few to pay


def test_the_size_before_the_cut_counts_whole_chunks(text_file, tmp_path):
    """Where seven of eight neighbours are likely kept and the eighth outweighs them, all are
    pruned."""
    problem = problem_of("llama", text_file.read_text(), tmp_path)
    layout = problem.budget.layout
    problem = dataclasses.replace(problem, budget=Budget(layout, chunk=8))
    problem = with_config(problem, learn=LearnConfig(estimator="reinmax"))
    logits = torch.ones(layout.entries)
    first = layout.split(logits)[layout.names.index("layers.0.attn_in")]
    first[7] = -100.0
    kept = torch.ones(layout.entries)
    layout.split(kept)[layout.names.index("layers.0.attn_in")][:8] = 0
    wanted = float(problem.budget.keep(layout.counts(kept.long())))
    assert wanted < 1
    assert keep_by_penalty(problem, Selection(logits)) == pytest.approx(wanted)


@pytest.mark.parametrize(
    "model_type", ["llama", "gpt2", "opt", "phi3", "gptj", "mixtral", "gpt_oss", "qwen3_5_text"]
)
def test_chunks_are_exact_and_shorten_the_indices(model_type, tmp_path):
    target = tiny_prunable(model_type)
    masks = chunked_masks(target.layout, 8)
    assert masks.chunk == 8
    with masked(target) as masking, torch.no_grad():
        masking.set(masks.kept.float())
        wanted = target.model(PROMPT).logits
    export_folder(target, byte_tokenizer(), masks, tmp_path / "model", "5GB")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(PROMPT).logits, wanted, rtol=0, atol=2e-5)
    assert loaded.config.disp_llm["chunk"] == 8
    hidden = target.layout.blocks[0].hidden
    indices = {n: b for n, b in loaded.named_buffers() if n.endswith(("kept_in", "kept_out"))}
    assert indices
    assert all(len(kept) < hidden // 8 for kept in indices.values())


@pytest.mark.parametrize("worth", [CHUNKS, ()])
def test_gradients_are_those_of_single_dimensions(worth, monkeypatch):
    """The same masks, selected either way, against the masked model."""
    monkeypatch.setattr(layouts, "CHUNKS", worth)
    target = tiny_prunable("llama")
    masks = chunked_masks(target.layout, 8)
    assert masks.chunk == (8 if worth else 1)
    compact = compact_model(target, masks).requires_grad_(True)
    compact(PROMPT, labels=PROMPT).loss.backward()
    with masked(target) as masking, target_gradients(target.model):
        masking.set(masks.kept.float())
        target.model(PROMPT, labels=PROMPT).loss.backward()
        wanted = target.model.model.layers[1].mlp.down_proj.weight.grad
    indices = masks.indices()
    rows, columns = (indices[f"layers.1.{site}"] for site in ("mlp_out", "mlp_mid"))
    found = compact.model.layers[1].mlp.down_proj.weight.grad
    torch.testing.assert_close(found, wanted[rows][:, columns])


@contextlib.contextmanager
def target_gradients(model) -> Iterator[None]:
    """While the context lasts, weights have gradients."""
    model.requires_grad_(True)
    try:
        yield
    finally:
        model.requires_grad_(False)
        model.zero_grad()


def test_learning_moves_a_chunk_as_one(text_file, tmp_path):
    problem = problem_of("llama", text_file.read_text(), tmp_path)
    budget = dataclasses.replace(problem.budget, chunk=8)
    problem = with_config(
        dataclasses.replace(problem, budget=budget),
        learn=LearnConfig(steps=4, adapter_rank=0),
        training=TrainingConfig(length=24),
    )
    found = method_named("learned").choose(problem)
    for part, shared in zip(
        problem.budget.layout.split(found.importance), budget.layout.in_stream, strict=True
    ):
        if shared:  # AdamW steps are of the sign of a gradient that neighbours share
            torch.testing.assert_close(part.view(-1, 8), part.view(-1, 8)[:, :1].expand(-1, 8))
    masks = Masks(budget.layout, project(found.importance, budget, 0.4).kept, found)
    assert masks.chunk in (8, 16)


def test_a_run_selects_in_chunks_and_its_folder_passes_every_check(
    llama_folder, text_file, tmp_path
):
    done = must_run(
        "prune", llama_folder, "--recipe", "disp", "--text", text_file, "--keep", 0.4, "--chunk", 8,
        "--output-dir", tmp_path / "run", *SMALL, "--json",
    )  # fmt: skip
    (entry,) = json.loads(done.stdout)["models"]
    assert entry["logit_errors"]["max_logit_error"] <= 1e-5
    masks = kept_in(tmp_path / "run", "0.4")
    weights = load_file(tmp_path / "run" / "keep-0.4" / "model.safetensors")
    places = {"self_attn.kept_in": "attn_in", "self_attn.kept_out": "attn_out"}
    places |= {"mlp.kept_in": "mlp_in", "mlp.kept_out": "mlp_out"}
    indices = {name: kept for name, kept in weights.items() if ".kept_" in name}
    assert indices
    for name, kept in indices.items():
        _, _, block, place = name.split(".", 3)
        wanted = masks[f"layers.{block}.{places[place]}"].view(-1, 8)[:, 0]
        assert torch.equal(kept * 8, wanted)
    must_run("verify", tmp_path / "run")
    done = must_run("export", tmp_path / "run", "--keep", 0.3, "--json")
    (made,) = (tmp_path / "run").glob("keep-0.3*")
    config = json.loads((made / "config.json").read_text())
    assert config["disp_llm"]["chunk"] == 8


@pytest.mark.parametrize("chunk", [3, 5, 64])
def test_a_folder_whose_widths_are_no_chunks_is_refused(chunk, tmp_path):
    target = tiny_prunable("llama")
    masks = chunked_masks(target.layout, 8)
    export_folder(target, byte_tokenizer(), masks, tmp_path / "model", "5GB")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    config["disp_llm"]["chunk"] = chunk
    file.write_text(json.dumps(config))
    done = must_refuse("eval", tmp_path / "model")
    assert f"are no chunks of {chunk}" in done.stderr


def test_how_many_neighbours_stay_together():
    dense = tiny_prunable("llama")
    assert dense.layout.blocks[0].hidden == 32
    assert [usual_chunk(dense.layout, align) for align in (1, 8, 24, 32, 64)] == [1, 8, 8, 32, 32]
    drawn = PruneConfig("m", learn=LearnConfig(estimator="reinmax", penalty=6.0))
    alone = PruneConfig("m", learn=LearnConfig(adapter_rank=0))
    usual = [PruneConfig("m"), drawn, alone, PruneConfig("m", method="fisher")]
    assert [chunk_of(config, dense, 16) for config in usual] == [16, 1, 1, 1]
    asked = [PruneConfig("m", chunk=chunk) for chunk in (1, 2, 4, 32)]
    assert [chunk_of(config, dense, 16) for config in asked] == [1, 2, 4, 32]
    with pytest.raises(InputError, match="12 does not divide the 32 dimensions") as error:
        chunk_of(PruneConfig("m", chunk=12), dense, 16)
    assert error.value.hint == "ask for 4, or another divisor"


def test_shapes_that_are_timed_lie_in_chunks_too():
    layout = tiny_prunable("llama", heads=True, branches=True).layout
    shapes = [masks_of_shape(layout, shape, 8, 8) for shape in SHAPES]
    assert {masks.chunk for masks in shapes} <= {8, 16, 1}
    assert any(masks.chunk > 1 for masks in shapes)
    for masks in shapes:
        for part, shared in zip(layout.split(masks.kept), layout.in_stream, strict=True):
            assert not shared or torch.equal(part.view(-1, 8).all(1), part.view(-1, 8).any(1))
