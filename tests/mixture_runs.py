"""Runs of tiny mixtures of experts, and another size of them, each proven."""

import json
from pathlib import Path

from conftest import SMALL, must_run


def pruned(model: Path, text: Path, run: Path, *flags: object) -> dict[str, list[int]]:
    """The widths of a run of one size that is proven."""
    done = must_run("prune", model, "--text", text, "--output-dir", run, "--json", *SMALL, *flags)
    (made,) = json.loads(done.stdout)["models"]
    assert made["logit_errors"]["max_logit_error"] < 1e-5
    done = must_run("verify", run)
    return json.loads((Path(made["folder"]) / "config.json").read_text())["disp_llm"]["widths"]


def export_another_size(run: Path) -> None:
    """Adds the size 0.7 to a run without measuring it."""
    must_run("export", run, "--keep", 0.7, "--no-measure", "--json")
    must_run("verify", run)
