"""Pairs of models on the same windows: the ratio of perplexities, and an error that holds."""

import math
import statistics

import pytest
import torch

from disp_lab.comparison.paired_statistics import paired, paired_ratio
from disp_llm.evaluation.perplexity import perplexity_of
from disp_llm.evaluation.suites import loss_ratio


def losses(seed: int, windows: int, gain: float = 0.2) -> tuple[list[float], list[float]]:
    """A model's losses, and those of one that loses `gain` less, on windows of unlike hardness."""
    generator = torch.Generator().manual_seed(seed)
    hard = 3 + torch.randn(windows, generator=generator, dtype=torch.float64) / 2
    other = hard - gain + torch.randn(windows, generator=generator, dtype=torch.float64) / 50
    return hard.tolist(), other.tolist()


def test_the_error_is_that_of_the_differences():
    one, other = losses(0, 200)
    ratio, error = paired_ratio(one, other)
    closed, of_mean = loss_ratio(one, other)
    assert ratio == pytest.approx(closed)
    assert error == pytest.approx(of_mean, rel=0.1)
    assert paired_ratio(other, one)[0] == pytest.approx(1 / ratio)
    alone = statistics.stdev(one) / math.sqrt(len(one)) * ratio
    assert error < alone / 10, "what makes a window hard for both is no error of the ratio"
    assert paired_ratio(one, other) == (ratio, error), "drawn anew, the same"


def test_two_errors_hold_the_truth_as_often_as_they_should():
    held = 0
    for seed in range(200):
        ratio, error = paired_ratio(*losses(seed, 16))
        held += abs(ratio - math.exp(0.2)) <= 2 * error
    assert 0.88 <= held / 200 <= 0.97


def test_windows_count_by_their_tokens():
    losses = ([12.0, 90.0, 5.0], [10.0, 84.0, 5.0])
    measured = [perplexity_of(sums, [4, 30, 2], 40) for sums in losses]
    assert measured[0].window_tokens == [4, 30, 2]
    ratio, error = paired_ratio(
        measured[0].window_losses, measured[1].window_losses, measured[0].window_tokens
    )
    assert ratio == pytest.approx(measured[0].perplexity / measured[1].perplexity, rel=1e-5)
    assert error > 0
    same = perplexity_of([12.0, 9.0], [4, 4], 5)
    assert same.window_tokens == []
    assert same.window_losses == [3.0, 2.25]


def test_a_single_window_has_no_error():
    assert paired_ratio([2.0], [1.0]) == (pytest.approx(math.e), None)
    assert paired_ratio([2.0, 1.0], [2.0, 1.0]) == (1.0, 0.0)


def row(method: str, keep: float, losses: list[float], **more) -> dict:
    measured = {"perplexity": math.exp(statistics.fmean(losses)), "window_losses": losses}
    return {"method": method, "keep_asked": keep} | measured | more


def test_the_reference_is_ours_or_the_best_of_the_size():
    rows = [
        row("flap", 0.5, [3.0, 4.0]),
        row("learned", 0.5, [3.1, 4.1]),
        row("flap", 0.8, [2.0, 3.0]),
        row("wanda", 0.8, [2.2, 3.1], paired_with="gone", paired_ratio=9.0),
        row("flap", 0.8, [2.5, 3.5], weights="int8"),
        {"method": "taylor", "keep_asked": 0.8, "perplexity": 12.0},  # older than such losses
        {"method": "mpo", "keep_asked": 0.8, "perplexity": None, "error": "cannot"},
    ]
    found = paired(rows)
    told = [(one.get("paired_with"), one.get("paired_ratio")) for one in found]
    assert told == [
        ("learned", pytest.approx(math.exp(-0.1))),
        ("learned", 1.0),
        ("flap", 1.0),
        ("flap", pytest.approx(math.exp(0.15))),
        (None, None),
        (None, None),
        (None, None),
    ]
    assert "paired_ratio_stderr" not in found[1]
    assert found[3]["paired_ratio_stderr"] > 0
    assert paired(found) == found
    assert "paired_with" not in paired(found[:1])[0]
