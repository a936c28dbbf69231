"""Measured costs: the fit finds known ones, the correction arrives, the table is kept."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import SMALL, must_run, sites_with, tiny_prunable
from damage import BYTES
from transformers import AutoModelForCausalLM

from disp_llm.config.errors import InputError
from disp_llm.config.names import EXPERTS
from disp_llm.evaluation import latency, timing
from disp_llm.evaluation.latency import (
    SHAPES,
    cache_folder,
    corrected,
    masks_of_shape,
    table_name,
)
from disp_llm.evaluation.latency_fit import features, fit
from disp_llm.evaluation.timing import Pair, Workload
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.costs import parameter_costs


@pytest.fixture
def llama():
    return tiny_prunable("llama")


def times(heads: float = 0.0) -> torch.Tensor:
    """Coefficients of a machine, in the order of `features`."""
    attention = [3e-3, heads, 1e-5, 2e-5]
    mlp = [4e-3, 1e-4, 4e-5, 8e-5]
    return torch.tensor([0.2, *attention, *mlp, 3e-4, 2e-3], dtype=torch.float64)


UP = ("mlp_in", "mlp_mid", EXPERTS)


def counts_of(layout) -> torch.Tensor:
    masks = [masks_of_shape(layout, shape, align=1) for shape in SHAPES]
    return torch.stack([layout.counts(mask.kept.long()) for mask in masks])


@pytest.mark.parametrize(
    ("model_type", "heads"), [("llama", False), ("llama", True), ("opt", False), ("phi", False)]
)
def test_fit_predicts_the_times_of_known_coefficients(model_type, heads):
    layout = replace(tiny_prunable(model_type), sites=sites_with(heads, branches=True)).layout
    counts = counts_of(layout)
    truth = times(heads=5e-3 if heads else 0.0)
    shares = features(layout, counts) @ truth
    costs = fit(layout, counts, shares)
    assert float(costs.constant) == pytest.approx(0.2, rel=1e-6)
    thin = torch.tensor(layout.lengths) // 3 + 1
    without = thin.view(len(layout.blocks), -1).clone()
    without[1, : without.shape[1] // 2], without[2] = thin[: without.shape[1] // 2], 0
    for other in (thin, counts[0], counts[7], without.flatten()):
        wanted = float(features(layout, other[None]) @ truth)
        assert float(costs.cost(other)) == pytest.approx(wanted, rel=1e-6)
    few = replace(tiny_prunable(model_type), sites=sites_with(heads)).layout
    same = thin.view(len(layout.blocks), -1)[:, : len(few.sites)].flatten()
    assert float(replace(costs, layout=few).cost(same)) == pytest.approx(float(costs.cost(thin)))


def test_correction_arrives_at_the_target_of_a_machine_that_differs_from_its_table():
    share, attempts = corrected(0.6, lambda asked: 0.12 + 0.9 * asked**1.3)
    assert attempts[-1]["measured"] == pytest.approx(0.6, rel=latency.TOLERANCE)
    assert share == attempts[-1]["share"]
    assert len(attempts) <= latency.CORRECTIONS


def test_correction_returns_its_nearest_attempt_where_the_target_is_out_of_reach():
    share, attempts = corrected(0.2, lambda asked: max(asked, 0.5))
    assert len(attempts) == latency.CORRECTIONS
    assert min(a["measured"] for a in attempts) == 0.5
    assert share in [a["share"] for a in attempts if a["measured"] == 0.5]


def test_correction_stops_where_no_model_is_that_small():
    def measure(share: float) -> float:
        if share < 0.3:
            raise InputError("less than the smallest model", field="fit", hint="ask for more")
        return 0.5 + share / 2

    share, attempts = corrected(0.6, measure)
    assert share == attempts[-1]["share"] >= 0.3
    with pytest.raises(InputError):
        corrected(0.2, measure)


def test_projection_spends_measured_prices(llama):
    layout = replace(llama, sites=sites_with(branches=True)).layout
    counts = counts_of(layout)
    costs = fit(layout, counts, features(layout, counts) @ times())
    budget = Budget(layout, costs)
    scores = torch.rand(layout.entries, generator=torch.Generator().manual_seed(0))
    full = float(budget.share(torch.tensor(layout.lengths)))
    kept = layout.counts(project(scores, budget, 0.6 * full).kept.long())
    dearest = float(budget.entry_costs.max())
    assert 0.6 * full - dearest < float(budget.share(kept)) <= 0.6 * full


@pytest.mark.parametrize("heads", [False, True])
def test_what_cuts_save_is_the_difference_to_the_site_whole(llama, heads):
    layout = replace(llama, sites=sites_with(heads, branches=True)).layout
    counts = counts_of(layout)
    costs = fit(layout, counts, features(layout, counts) @ times(heads=5e-3 if heads else 0.0))
    for some in counts[8:]:  # those with all branches
        saved = costs.saved_by_cuts(some)
        for site, length in enumerate(layout.lengths):
            whole = some.clone()
            whole[site] = length
            assert float(saved[site]) == pytest.approx(
                float(costs.cost(whole) - costs.cost(some)), abs=1e-9
            )


def test_no_site_is_cut_whose_selection_costs_more_than_it_saves(llama):
    layout = llama.layout
    lengths = torch.tensor(layout.lengths)
    cheap = replace(parameter_costs(layout), per_cut=1.0)
    dear = replace(cheap, per_cut=1e4)
    scores = torch.rand(layout.entries, generator=torch.Generator().manual_seed(0))
    for share in (0.9, 0.7, 0.5):
        counts = {
            name: layout.counts(project(scores, Budget(layout, costs), share).kept.long())
            for name, costs in (("cheap", cheap), ("dear", dear))
        }
        assert float(Budget(layout, dear).share(counts["dear"])) <= share
        cut = {name: (found < lengths).view(-1, 5) for name, found in counts.items()}
        assert cut["cheap"].all(0)[[0, 1, 2, 4]].any()
        assert not cut["dear"][:, [0, 1, 2, 4]].any()
        assert cut["dear"][:, 3].all()


def test_table_is_measured_once_and_kept(llama, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = []

    def fake(dense, compact, workload, rounds, *_):
        measured.append(by_parameters(dense, compact))
        return taking(measured[-1])

    monkeypatch.setattr(timing.Stopwatch, "paired", staticmethod(fake))
    workload = Workload("decode", 16, 1)
    first = latency.latency_costs(llama, [workload], align=1)
    again = latency.latency_costs(llama, [workload], align=1)
    assert len(measured) == len(SHAPES)
    torch.testing.assert_close(first.terms[UP], again.terms[UP])
    latency.latency_costs(llama, [Workload("prefill", 16, 1)], align=1)
    assert len(measured) == 2 * len(SHAPES)


def test_costs_are_seconds_of_the_original(llama, monkeypatch, tmp_path):
    """Its time is the median over everything that it was timed beside."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(timing.Stopwatch, "paired", staticmethod(in_milliseconds()))
    lengths = torch.tensor(llama.layout.lengths)
    first, again = (latency.latency_costs(llama, [WORK], align=1) for _ in range(2))
    for costs in (first, again):
        assert costs.dense_cost == pytest.approx(0.2)
        assert float(costs.cost(lengths)) == pytest.approx(0.2, rel=0.1)  # as the fit has it
        half = Budget(llama.layout, costs).share(lengths // 2)
        assert float(half) == pytest.approx(float(costs.cost(lengths // 2)) / 0.2)
    # Of the same times; LAPACK's last digits depend on where a matrix lies in memory.
    torch.testing.assert_close(first.terms[UP], again.terms[UP])


def in_milliseconds():
    """A machine on which the original takes 200 ms, but for one time that something else ran."""
    first = iter([900.0])

    def timed(dense, compact, workload, rounds, *_) -> Pair:
        of_dense = next(first, 200.0)
        return Pair([1e-3 * of_dense], [1e-3 * of_dense * by_parameters(dense, compact)])

    return timed


def test_two_workloads_cost_the_mean_of_both(llama, monkeypatch, tmp_path):
    """In forecasts and in measurements; the tables are those of each."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shares = {"prefill": 0.3, "decode": 0.1}

    def fake(dense, compact, workload, rounds, *_):
        return taking(shares[workload.phase] + 0.5 * by_parameters(dense, compact))

    monkeypatch.setattr(timing.Stopwatch, "paired", staticmethod(fake))
    parts = (Workload("prefill", 16, 1), Workload("decode", 16, 1))
    mixed = latency.latency_costs(llama, parts, align=1)
    alone = [latency.latency_costs(llama, [part], align=1) for part in parts]
    counts = torch.tensor(llama.layout.lengths) // 2
    wanted = [float(costs.cost(counts)) for costs in alone]
    assert float(mixed.cost(counts)) == pytest.approx(sum(wanted) / 2)
    share, seconds = latency.measured_time(llama.model, llama.model, parts)
    assert share == seconds == pytest.approx((0.3 + 0.1) / 2 + 0.5)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """The user's cache, and machines that are measured at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(latency, "compact_model", lambda target, masks: masks)
    monkeypatch.setattr(timing.Stopwatch, "paired", staticmethod(by_entries))
    return cache_folder()


WORK = Workload("decode", 16, 1)


def taking(share: float) -> Pair:
    """One round, of which the second model takes this share of the first one's time."""
    return Pair([1.0], [share])


def by_entries(dense, masks, workload, rounds) -> Pair:
    """A machine whose time is 0.1 of the dense model's, and the rest by what is kept."""
    return taking(0.1 + 0.9 * float(masks.kept.float().mean()))


def test_a_damaged_table_is_measured_again_with_one_warning(llama, cache, caplog):
    wanted = latency.latency_costs(llama, [WORK], align=1)
    (path,) = cache.glob("*.json")
    stored = path.read_bytes()
    damaged = [damage(stored) for damage in BYTES.values()]
    whole = json.loads(stored)
    first, *others = whole["shares"]
    shares = (["x", *others], [0.0, *others], others, [first, first, *others])
    changes = [*({"shares": some} for some in shares), {"dense_s": 0.0}]
    damaged += [json.dumps(whole | change).encode() for change in changes]
    for content in damaged:
        caplog.clear()
        path.write_bytes(content)
        found = latency.latency_costs(llama, [WORK], align=1)
        torch.testing.assert_close(found.terms[UP], wanted.terms[UP])
        assert [str(path) in record.getMessage() for record in caplog.records] == [True], content
        assert path.read_bytes() == stored  # the next run has it


def test_a_table_is_found_whatever_the_order_of_a_configuration():
    first, other = (tiny_prunable("llama").model for _ in range(2))
    first.config.one, first.config.two = 1, 2
    other.config.two, other.config.one = 2, 1
    assert table_name(first) == table_name(other)
    other.config.two = 3
    assert table_name(first) != table_name(other)


def test_a_cache_that_cannot_be_written_costs_a_warning(llama, cache, caplog, monkeypatch):
    (cache.parents[1] / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1] / "file"))  # below which nothing lies
    assert latency.latency_costs(llama, [WORK], align=1) is not None
    assert ["what was measured is not kept" in r.getMessage() for r in caplog.records] == [True]


def by_parameters(dense, compact) -> float:
    """A machine whose time is 0.1 of the dense model's, and the rest by parameters squared."""
    of = [sum(p.numel() for p in model.parameters()) for model in (dense, compact)]
    return 0.1 + 0.9 * (of[1] / of[0]) ** 2


def test_prune_to_a_latency_until_the_measured_one_is_there(
    llama_folder, text_file, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        timing.Stopwatch, "paired", staticmethod(lambda *asked: taking(by_parameters(*asked[:2])))
    )
    done = must_run(
        "prune", llama_folder, "--budget", "latency", "--fit", 0.6, 0.8,
        "--workload", "prefill", "decode", "--workload-length", 100,
        "--text", text_file, "--output-dir", tmp_path / "run", "--json", *SMALL,
    )  # fmt: skip
    result = json.loads(done.stdout)
    dense = AutoModelForCausalLM.from_pretrained(llama_folder)
    for target, model in zip((0.6, 0.8), result["models"], strict=True):
        compact = AutoModelForCausalLM.from_pretrained(model["folder"])
        assert model["share_asked"] == target
        assert model["size"] == f"latency-prefill+decode-100-{target}"
        assert model["latency"]["measured_share"] == by_parameters(dense, compact)
        assert model["latency"]["measured_share"] == pytest.approx(target, rel=latency.TOLERANCE)


def test_a_table_is_named_by_all_that_its_times_depend_on(monkeypatch):
    model = tiny_prunable("llama").model
    first = table_name(model, {"phase": "prefill"}, 4, 1, ("attn_in",))
    others = [
        table_name(model, {"phase": "decode"}, 4, 1, ("attn_in",)),
        table_name(model, {"phase": "prefill"}, 8, 1, ("attn_in",)),
        table_name(model, {"phase": "prefill"}, 4, 2, ("attn_in",)),
        table_name(model, {"phase": "prefill"}, 4, 1, ("mlp_in",)),
    ]
    asked = (model, {"phase": "prefill"}, 4, 1, ("attn_in",))
    for name, value in (("hardware", {"cpu": "another"}), ("versions", {"torch": "1"})):
        with monkeypatch.context() as patch:
            patch.setattr(latency, name, lambda value=value: value)
            others.append(table_name(*asked))
    others.append(table_name(tiny_prunable("llama").model.to(torch.bfloat16), *asked[1:]))
    others.append(table_name(tiny_prunable("llama").model.to("meta"), *asked[1:]))
    wide = tiny_prunable("llama", intermediate_size=64).model
    others.append(table_name(wide, *asked[1:]))
    assert len({first, *others}) == 10
    assert table_name(tiny_prunable("llama").model, *asked[1:]) == first
