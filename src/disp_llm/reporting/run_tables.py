"""What a run of `prune` or `recover` has made, as tables and lines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from disp_llm.reporting.tables import megabytes, new_table
from disp_llm.reporting.terminal import results, say
from disp_llm.runs.figures import RunFigures, run_figures
from disp_llm.runs.results import (
    PHASES,
    DenseResult,
    SizeResult,
    dropped_said,
    kept_said,
    masked_perplexity_said,
    perplexity_said,
    ratio_said,
    speed_said,
)
from disp_llm.runs.scores import Scores

WORTH_RECOVERY = 1.1
"""Perplexity over the original's from which on training the kept weights is proposed."""


def show_models(figures: dict[str, Any], file: Path) -> None:
    """The dense model and the pruned ones side by side, and where things lie.

    Args:
        figures: what `result.json` of a run of `prune` holds.
        file: where that lies.
    """
    found = run_figures(figures, str(file))
    dense, models, source = found.dense, found.models, found.source
    assert dense is not None
    assert source is not None
    table = new_table(
        ("", "dense", *map(_column_name, models)),
        title=f"{source['model']}, perplexity on {source['eval_text']}",
    )
    _add_figures(table, dense, models)
    results.print(table)
    _say_what_is_slow(models)
    for model in models:
        say(f"model   {model.folder}")
    if found.keep_by_penalty is not None:
        results.print(f"the penalty alone arrived at keep {found.keep_by_penalty:.4f}")
    say(f"run     {_cost(found)}")
    _say_what_wins_back(dense, models)


def _column_name(model: SizeResult) -> str:
    if model.budget == "params":
        return f"keep {model.size}"
    return model.size.replace("-", " ")


def _add_figures(table: Table, dense: DenseResult, models: list[SizeResult]) -> None:
    def row(name: str, of_dense: str, show: Callable[[SizeResult], str]) -> None:
        table.add_row(name, of_dense, *map(show, models))

    if dense.scores and dense.scores.texts:
        row("perplexity of the suite", "×1", lambda m: ratio_said(m.scores))
    if dense.scores and dense.scores.tasks:
        row("kept of its tasks", "100.0 %", lambda m: kept_said(m.scores))
    row("perplexity", str(dense.measured), perplexity_said)
    if any(model.measured for model in models):
        row("perplexity, masked", "", masked_perplexity_said)
    row("block parameters", f"{dense.block_parameters:,}", lambda m: f"{m.block_parameters:,}")
    row("of the dense ones", "", lambda m: f"{m.keep:.4%}")
    row("all parameters", f"{dense.parameters:,}", lambda m: f"{m.parameters:,}")
    row("of the dense ones", "", lambda m: f"{m.keep_total:.4%}")
    if any(map(dropped_said, models)):
        row("whole branches pruned", "", dropped_said)
    row("weights on disk", megabytes(dense.bytes), lambda m: megabytes(m.bytes))
    timed = [model.speed for model in models if model.speed]
    for phase, name in (("prefill", "prefill, 512 tokens"), ("decode", "decode, one token")):
        if timed:
            row(
                name, f"{timed[0][f'{phase}_dense_ms']:.1f} ms", lambda m, p=phase: speed_said(m, p)
            )
    for kind in ("total", "flops", "bytes", "memory", "latency", "active"):
        if any(model.budget == kind for model in models):
            row(
                f"{kind}, of the dense ones",
                "",
                lambda m, kind=kind: f"{m.share_measured:.2%}" if m.budget == kind else "",
            )
    checked = {key for model in models for key in model.logit_errors}
    for key in sorted(checked - {"max_logit_error"}):
        row(
            f"export vs masked, {key.removeprefix('max_logit_error_')}",
            "",
            lambda m, key=key: (
                f"{m.logit_errors[key]:.1e}" if key in m.logit_errors else "not checked"
            ),
        )


def _say_what_is_slow(models: list[SizeResult]) -> None:
    """Says which models are no faster than the original here, and what to ask for instead."""
    slow = [
        f"{_column_name(model)} {phase} ×{model.speed[f'{phase}_speedup']:.2f}"
        for model in models
        for phase in PHASES
        if model.speed and model.speed[f"{phase}_speedup"] <= 1
    ]
    if slow:
        say(f"no faster than the original on this machine: {', '.join(slow)}")
        if any(model.budget != "latency" for model in models):
            say("for time ask for `--budget latency --target 0.8`")


def _say_what_wins_back(dense: DenseResult, models: list[SizeResult]) -> None:
    """Names the command that trains the weights of the model that has lost most, where that is
    worth it: masks, scales and adapters leave them as they are."""
    lost = {
        model.folder: model.measured.perplexity / dense.measured.perplexity
        for model in models
        if model.measured
    }
    worst = max(lost, key=lost.__getitem__, default="")
    if worst and lost[worst] > WORTH_RECOVERY:
        say(f"next    disp-llm recover {worst}, with the same text: trains what is left")


def show_recovery(figures: dict[str, Any], file: Path) -> None:
    """Scores and perplexity before and after, and the teacher's perplexity where there is one.

    Args:
        figures: what `result.json` of a run of `recover` holds.
        file: where that lies.
    """
    found = run_figures(figures, str(file))
    model, source = found.model, found.source
    assert model is not None
    assert source is not None
    assert found.before is not None
    _show_change(found.before.scores, model.scores)
    measured = f"{found.before.measured} -> {model.measured}"
    taught = f", teacher {found.teacher}" if found.teacher else ""
    say(f"{source['model']}, perplexity on {source['eval_text']}: {measured}{taught}")
    say(f"model   {model.folder}")
    say(f"run     {_cost(found)}")


def _show_change(before: Scores | None, after: Scores | None) -> None:
    """What is lost and kept on the suite before training and after, where there is one."""
    if before is None or after is None:
        return
    changes = {
        "perplexity of the texts": (ratio_said(before), ratio_said(after)),
        "kept of the tasks": (kept_said(before), kept_said(after)),
    }
    said = [f"{name} {was} -> {now}" for name, (was, now) in changes.items() if now]
    say(f"{after.suite}: {', '.join(said)}")


def _cost(found: RunFigures) -> str:
    return (
        f"{found.run}  ({found.tokens_seen or 0:,} tokens seen, {found.seconds or 0:.0f} s, "
        f"peak {(found.peak_memory_bytes or 0) / 2**30:.2f} GiB)"
    )
