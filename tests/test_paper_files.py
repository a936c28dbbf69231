"""The experiments of the paper at full size, none of which has been run: what each needs is said,
and sizes are counted as the paper counts them."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from disp_llm.cli.parsing import parse
from disp_llm.config.prune import PruneConfig

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "experiments").glob("paper-*.toml"))
TABLES = (1, 2, 3, 4, *range(6, 15))
"""All with results but 15, which is LoRA after pruning (PEFT does that), and 16, which shows two
texts; 5 lists settings."""


def test_every_table_of_the_paper_has_a_file():
    names = {path.stem for path in FILES}
    assert {f"paper-table-{number}" for number in TABLES} | {"paper-figure-5"} <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_a_file_needs_is_said_and_that_it_was_not_run(path):
    experiment = tomllib.loads(path.read_text())
    for word in (r"\bGPU|\bA100", r"\bhub\b", r"\bhours?\b"):
        assert re.search(word, experiment["needs"]), word
    assert not (ROOT / "experiments" / "results" / f"{path.stem}.json").exists()
    page = (ROOT / "docs" / "reproduce.md").read_text()
    assert f"| {experiment['title']} | not run: it needs {experiment['needs']} |" in page


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_sizes_are_shares_of_all_parameters(path):
    experiment = tomllib.loads(path.read_text())
    command = experiment.get("command", "prune")
    for variant in experiment["variant"]:
        flags = f"{experiment['common']} {variant['flags']}"
        config = parse([command, *shlex.split(flags)])
        if not isinstance(config, PruneConfig):  # 2:4 has one size, and LoRA takes what is there
            continue
        assert config.budget.budget == "total"
        assert config.learn.estimator == "reinmax"
        stated = re.search(r"(\d+) % pruned", variant["name"])
        if stated:
            (size,) = config.sizes
            assert (size.amount, size.unit) == (pytest.approx(1 - int(stated[1]) / 100), "")
