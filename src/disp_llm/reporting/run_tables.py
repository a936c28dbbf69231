"""What a run of `prune` or `recover` has made, as tables and lines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from disp_llm.reporting.tables import Table, megabytes
from disp_llm.reporting.terminal import say
from disp_llm.runs.results import (
    PHASES,
    MeasuredResult,
    OriginalResult,
    RunFigures,
    SizeResult,
    TrainedResult,
    dropped_said,
    perplexity_said,
    run_figures,
    speed_said,
)
from disp_llm.runs.scores import Perplexity, kept_said, ratio_said

WORTH_RECOVERY = 1.1
"""Perplexity over the original's from which on training the kept weights is proposed."""


def show_models(figures: dict[str, Any], file: Path) -> None:
    """The original and the pruned models side by side, and where things lie.

    Args:
        figures: what `result.json` of a run of `prune` holds.
        file: where that lies.
    """
    found = run_figures(figures, str(file))
    original, models, source = found.original, found.models, found.source
    assert original is not None
    assert source is not None
    title = f"{source['model']}, perplexity on {source['eval_text']}"
    sizes_table(original, models, title).show()
    _say_what_is_slow(models)
    for model in models:
        say(f"model   {model.folder}")
    if found.keep_by_penalty is not None:
        say(f"the penalty alone arrived at keep {found.keep_by_penalty:.4f}")
    say(f"run     {_cost(found)}")
    _say_what_wins_back(original, models)


def sizes_table(original: OriginalResult, models: list[SizeResult], title: str = "") -> Table:
    """A column for every model; rows of which no pruned model has a figure are left out."""
    rows: list[tuple[str, ...]] = []

    def row(name: str, of_original: str, cell: Callable[[SizeResult], str]) -> None:
        cells = [cell(model) for model in models]
        if any(cells):
            rows.append((name, of_original, *cells))

    row("perplexity of the suite", "×1", lambda m: ratio_said(m.scores))
    row("kept of its tasks", "100.0 %", lambda m: kept_said(m.scores))
    row("perplexity", str(original.measured), perplexity_said)
    row(
        "perplexity, masked",
        "",
        lambda m: "" if m.perplexity_masked is None else f"{m.perplexity_masked:.2f}",
    )
    row("block parameters", f"{original.block_parameters:,}", lambda m: f"{m.block_parameters:,}")
    row("of the original's", "", lambda m: f"{m.keep:.2%}")
    row("all parameters", f"{original.parameters:,}", lambda m: f"{m.parameters:,}")
    row("of the original's", "", lambda m: f"{m.keep_total:.2%}")
    row("whole branches pruned", "", dropped_said)
    row("weights on disk", megabytes(original.bytes), lambda m: megabytes(m.bytes))
    row("KV cache, of the original's", "", lambda m: f"{m.kv_cache:.0%}")
    timed = next((model.speed for model in models if model.speed), {})
    for phase, name in (("prefill", "prefill, 512 tokens"), ("decode", "decode, one token")):
        took = f"{timed[f'{phase}_original_ms']:.1f} ms" if timed else ""
        row(name, took, lambda m, phase=phase: speed_said(m, phase))
    for kind in ("total", "flops", "bytes", "memory", "latency", "active"):
        row(
            f"{kind}, of the original's",
            "",
            lambda m, kind=kind: f"{m.share_measured:.2%}" if m.budget == kind else "",
        )
    checked = {key for model in models for key in model.logit_errors}
    for key in sorted(checked - {"max_logit_error"}):
        row(
            f"export vs masked, {key.removeprefix('max_logit_error_')}",
            "",
            lambda m, key=key: f"{m.logit_errors[key]:.1e}" if key in m.logit_errors else "",
        )
    return Table(("", "original", *map(_column_name, models)), rows, title)


def _column_name(model: SizeResult) -> str:
    return f"keep {model.size}" if model.budget == "params" else model.size.replace("-", " ")


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


def _say_what_wins_back(original: OriginalResult, models: list[SizeResult]) -> None:
    """Names the command that trains the weights of the model that has lost most, where that is
    worth it: masks, scales and adapters leave them as they are."""
    lost = {
        model.folder: model.measured.perplexity / original.measured.perplexity
        for model in models
        if model.measured
    }
    worst = max(lost, key=lost.__getitem__, default="")
    if worst and lost[worst] > WORTH_RECOVERY:
        say(f"next    disp-llm recover {worst}, with the same text: trains what is left")


def show_recovery(figures: dict[str, Any], file: Path) -> None:
    """Scores and perplexity before and after training, and where things lie.

    Args:
        figures: what `result.json` of a run of `recover` holds.
        file: where that lies.
    """
    found = run_figures(figures, str(file))
    before, model, source = found.before, found.model, found.source
    assert before is not None
    assert model is not None
    assert source is not None
    title = f"{source['model']}, perplexity on {source['eval_text']}"
    recovery_table(before, model, found.teacher, title).show()
    say(f"model   {model.folder}")
    say(f"run     {_cost(found)}")


def recovery_table(
    before: MeasuredResult, after: TrainedResult, teacher: Perplexity | None, title: str = ""
) -> Table:
    """What training has changed, with the teacher's perplexity where there is one."""
    rows = [
        ("perplexity of the suite", ratio_said(before.scores), ratio_said(after.scores), ""),
        ("kept of its tasks", kept_said(before.scores), kept_said(after.scores), ""),
        ("perplexity", str(before.measured), str(after.measured), str(teacher or "")),
    ]
    end = 4 if teacher else 3
    names = ("", "before training", "after", "teacher")
    return Table(names[:end], [row[:end] for row in rows if row[2]], title)


def _cost(found: RunFigures) -> str:
    return (
        f"{found.run}  ({found.tokens_seen or 0:,} tokens seen, {found.seconds or 0:.0f} s, "
        f"peak {(found.peak_memory_bytes or 0) / 2**30:.2f} GiB)"
    )


def show_page(file: Path) -> None:
    """Where the page of a run lies."""
    say(f"page    {file}  ({file.stat().st_size / 1e3:,.0f} kB)")
