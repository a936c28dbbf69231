"""`export --most-lost`: the smallest size that loses no more than that."""

import json
import math
import shutil
from dataclasses import replace

import pytest
from conftest import run_command

from disp_llm.commands.measuring import Measuring


@pytest.fixture
def own_run(small_run, tmp_path):
    return shutil.copytree(small_run[0], tmp_path / "run")


@pytest.fixture
def losing(monkeypatch):
    """The keeps that were tried, where the original has a perplexity of 10 and a masked model
    10 + 20 · (1 − keep), whatever they predict."""
    tried, measure = [], Measuring.perplexity

    def perplexity(self, target, stage):
        found = measure(self, target, stage)
        if not stage.endswith("masked perplexity"):
            return found
        tried.append(float(stage.split()[1].rstrip(":")))
        losing = 10 + 20 * (1 - tried[-1])
        losses = [math.log(losing)] * len(found.window_losses)
        return replace(found, perplexity=losing, window_losses=losses)

    monkeypatch.setattr(Measuring, "perplexity", perplexity)
    monkeypatch.setattr("disp_llm.commands.export_sizes.perplexity_of_original", lambda run: 10.0)
    return tried


def export(run, most_lost):
    done = run_command("export", run, "--most-lost", most_lost, "--json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["models"]


@pytest.mark.parametrize(
    ("most_lost", "keep"),
    [(1.2, 0.9), (1.49, 0.76), (1.0, 1.0), (1.9, 0.55), (2.0, 0.5), (7, 0.5)],
)
def test_the_smallest_size_that_loses_no_more(own_run, losing, most_lost, keep):
    """Down to the smallest that the run learned for, which is written last."""
    (made,) = export(own_run, most_lost)
    assert made["keep_asked"] == keep
    assert len(set(losing)) <= 7
    assert min(losing) >= 0.5


def test_what_is_written_loses_as_little_as_was_asked(own_run, small_run):
    """Measured, not foretold."""
    figures = small_run[1]
    original = figures["dense"]["perplexity"]
    half = next(m for m in figures["models"] if m["keep_asked"] == 0.5)
    between = (1 + half["perplexity_masked"] / original) / 2
    (made,) = export(own_run, max(between, 1))
    assert made["perplexity_masked"] <= max(between, 1) * original
    assert made["perplexity"] == pytest.approx(made["perplexity_masked"], rel=1e-4)
