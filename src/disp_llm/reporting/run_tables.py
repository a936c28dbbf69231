"""Shows the results of a run of `prune` or `recover` as tables and lines."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from disp_llm.config.names import name_of
from disp_llm.reporting.tables import Table, megabytes
from disp_llm.reporting.terminal import say
from disp_llm.runs.results import (
    NOT_MEASURED,
    PHASES,
    Fit,
    MeasuredResult,
    OriginalResult,
    RunFigures,
    SizeResult,
    TrainedResult,
    dropped_said,
    run_figures,
)
from disp_llm.runs.scores import Perplexity, kept_said, ratio_said, with_error

WORTH_RECOVERY = 1.1
"""Ratio to the original's perplexity above which training the kept weights is proposed."""


def show_run(figures: dict[str, Any]) -> None:
    """Prints the models of a run, given the content of its `result.json`, beside their original,
    and where they lie."""
    found = run_figures(figures)
    table = run_table(found)
    assert table is not None
    table.show()
    _say_what_is_slow(found.models)
    for model in (*found.models, *filter(None, [found.model])):
        say(f"model   {model.folder}")
        if model.converted:
            say(f"        {model.converted}")
    if found.fit is not None and found.fit.chosen is not None:
        say(f"fits    {found.run}/{found.fit.folder_name}: {_fit_said(found.fit)}")
    if found.keep_by_penalty is not None:
        say(f"the penalty alone arrived at keep {found.keep_by_penalty:.4f}")
    cost = f"{found.tokens_seen or 0:,} tokens seen, {found.seconds or 0:.0f} s"
    peak = (found.peak_memory_bytes or 0) / 2**30
    say(f"run     {found.run}  ({cost}, peak {peak:.2f} GiB)")
    _say_what_wins_back(found)


def _fit_said(fit: Fit) -> str:
    """Describes the chosen way to store the model, and what the others would have lost."""
    tokens = f"{fit.vocabulary:,} tokens, " if fit.vocabulary else ""
    said = [
        f"{one.bits} keep {one.keep:g} {megabytes(one.bytes or 0)} ×{one.ratio or 0:.3f}"
        for one in sorted(fit.choices, key=lambda one: one.bits != fit.chosen)
    ]
    others = f"; {', '.join(said[1:])}" if said[1:] else ""
    return f"{tokens}{said[0]}{others}"


def run_table(found: RunFigures) -> Table | None:
    """Returns the table of a run's results, with the perplexity's text and windows as the title;
    None if the run has measured nothing yet."""
    if found.original is not None:
        table, measured = _sizes_table(found.original, found.models), found.original.measured
    elif found.before is not None and found.model is not None:
        table = _recovery_table(found.before, found.model, found.teacher)
        measured = found.model.measured
    else:
        return None
    if found.source is None:
        return table
    title = f"{name_of(found.source['model'])}, perplexity on {found.source['eval_text']}, "
    title += f"{measured.tokens:,} tokens, windows of {measured.window}"
    return replace(table, title=title)


def verdicts(found: RunFigures) -> list[tuple[str, list[str]]]:
    """Returns the name of each model with a few phrases that compare it with the original: bytes,
    and perplexity and speed if measured. The choice of `--fit` comes first."""
    original, said = found.original, list[tuple[str, list[str]]]()
    if original is None:
        return said
    if found.fit is not None and found.fit.chosen is not None:
        said.append((f"fits {found.fit.asked}", [_fit_said(found.fit)]))
    for model in found.models:
        words = [f"{megabytes(model.bytes)} of {megabytes(original.bytes)}"]
        if model.scores is not None:
            words.append(f"perplexity {ratio_said(model.scores)} over a suite of texts")
        elif model.measured is not None:
            words.append(
                f"perplexity ×{model.measured.perplexity / original.measured.perplexity:.2f}"
            )
        for phase, name in (("prefill", "a prompt"), ("decode", "a token")):
            if model.speed:
                words.append(f"{name} ×{model.speed[f'{phase}_speedup']:.2f} as fast")
        if model.speed and model.timed_in != "transformers":
            words[-1] += f" in {model.timed_in}"
        said.append((_column_name(model), words))
    return said


def _sizes_table(original: OriginalResult, models: list[SizeResult]) -> Table:
    """Makes a table with a column per model; leaves out rows without a figure of a pruned model."""
    rows: list[tuple[str, ...]] = []

    def row(name: str, of_original: str, cell: Callable[[SizeResult], str]) -> None:
        cells = [cell(model) for model in models]
        if any(cells):
            rows.append((name, of_original, *cells))

    row("perplexity of the suite", "×1", lambda m: ratio_said(m.scores))
    row("kept of its tasks", "100.0 %", lambda m: kept_said(m.scores))
    row("perplexity", str(original.measured), perplexity_said)
    row("perplexity, masked", "", lambda m: with_error(m.perplexity_masked, None))
    row("block parameters", f"{original.block_parameters:,}", lambda m: f"{m.block_parameters:,}")
    row("of the original's", "", lambda m: f"{m.keep:.2%}")
    row("all parameters", f"{original.parameters:,}", lambda m: f"{m.parameters:,}")
    row("of the original's", "", lambda m: f"{m.keep_total:.2%}")
    row("tokens that are left", "", lambda m: f"{m.vocabulary:,}" if m.vocabulary else "")
    row("whole branches pruned", "", dropped_said)
    row("weights on disk", megabytes(original.bytes), lambda m: megabytes(m.bytes))
    row("KV cache, of the original's", "", lambda m: f"{m.kv_cache:.0%}")
    timed = next((model for model in models if model.speed), None)
    for phase, name in (("prefill", "prefill, up to 512 tokens"), ("decode", "decode, one token")):
        took = f"{timed.speed[f'{phase}_original_ms']:.1f} ms" if timed else ""
        if timed and timed.timed_in != "transformers":
            name += f", in {timed.timed_in}"
        row(name, took, lambda m, phase=phase: _speed_said(m, phase))
    for kind in dict.fromkeys(model.budget for model in models if model.budget != "params"):
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
    return Table(("", "original", *map(_column_name, models)), rows)


def _column_name(model: SizeResult) -> str:
    return f"keep {model.size}" if model.budget == "params" else model.size.replace("-", " ")


def perplexity_said(size: SizeResult) -> str:
    """`53.29 ± 7.51`."""
    return str(size.measured or NOT_MEASURED)


def _speed_said(size: SizeResult, phase: str) -> str:
    """Returns `×1.23 (1.20 to 1.25)`, the speed-up over the original with its quartiles over
    rounds; empty if not timed."""
    if not size.speed:
        return ""
    low, middle, high = (size.speed[f"{phase}_speedup{end}"] for end in ("_low", "", "_high"))
    return f"×{middle:.2f} ({low:.2f} to {high:.2f})"


def _say_what_is_slow(models: list[SizeResult]) -> None:
    """Prints which models are no faster than the original here, and a latency budget to ask for."""
    slow = [
        f"{_column_name(model)} {phase} ×{model.speed[f'{phase}_speedup']:.2f}"
        for model in models
        for phase in PHASES
        if model.speed and model.speed[f"{phase}_speedup"] <= 1
    ]
    if slow:
        say(f"no faster than the original on this machine: {', '.join(slow)}")
        if any(model.budget != "latency" for model in models):
            say("for time ask for `--budget latency --fit 0.8`")


def _say_what_wins_back(found: RunFigures) -> None:
    """Prints the `recover` command for the model that has lost most, if it is worth training: the
    masks, scales and adapters that were learned leave the kept weights untrained."""
    lost = {
        model.folder: model.measured.perplexity / found.original.measured.perplexity
        for model in found.models
        if model.measured and found.original
    }
    worst = max(lost, key=lost.__getitem__, default="")
    if worst and lost[worst] > WORTH_RECOVERY:
        say(f"next    disp-llm recover {worst}, with the same text: trains what is left")


def _recovery_table(
    before: MeasuredResult, after: TrainedResult, teacher: Perplexity | None
) -> Table:
    """Makes a table of figures before and after training, with the teacher's perplexity if any."""
    rows = [
        ("perplexity of the suite", ratio_said(before.scores), ratio_said(after.scores), ""),
        ("kept of its tasks", kept_said(before.scores), kept_said(after.scores), ""),
        ("perplexity", str(before.measured), str(after.measured), str(teacher or "")),
    ]
    end = 4 if teacher else 3
    names = ("", "before training", "after", "teacher")
    return Table(names[:end], [row[:end] for row in rows if row[2]])


def show_page(file: Path) -> None:
    """Prints the path and size of a run's page."""
    say(f"page    {file}  ({file.stat().st_size / 1e3:,.0f} kB)")
