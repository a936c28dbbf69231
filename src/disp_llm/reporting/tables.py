"""What a command found, as tables and lines on standard error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from disp_llm.config.schema import as_type
from disp_llm.reporting.comparison import by_method, columns, figures_in, suite_said
from disp_llm.reporting.reading import bench_figures, comparison_figures
from disp_llm.reporting.terminal import console, say
from disp_llm.runs.figures import RunFigures, run_figures
from disp_llm.runs.results import (
    DenseResult,
    Perplexity,
    SizeResult,
    dropped_said,
    from_json,
    kept_said,
    masked_perplexity_said,
    percent_with_error,
    perplexity_said,
    ratio_said,
    speed_said,
    with_error,
)
from disp_llm.runs.scores import Scores


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
    table = _table(
        ("", "dense", *map(_column_name, models)),
        title=f"{source['model']}, perplexity on {source['eval_text']}",
    )
    _add_figures(table, dense, models)
    console.print(table)
    _say_what_is_slow(models)
    for model in models:
        say(f"model   {model.folder}")
    if found.keep_by_penalty is not None:
        console.print(f"the penalty alone arrived at keep {found.keep_by_penalty:.4f}")
    say(f"run     {_cost(found)}")


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
    row("weights on disk", _megabytes(dense.bytes), lambda m: _megabytes(m.bytes))
    timed = [model.speed for model in models if model.speed]
    for phase, name in (("prefill", "prefill, 512 tokens"), ("decode", "decode, one token")):
        if timed:
            row(
                name, f"{timed[0][f'{phase}_dense_ms']:.1f} ms", lambda m, p=phase: speed_said(m, p)
            )
    for kind in ("flops", "bytes", "memory", "latency"):
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
        for phase in ("prefill", "decode")
        if model.speed and model.speed[f"{phase}_speedup"] <= 1
    ]
    if slow:
        say(f"no faster than the original on this machine: {', '.join(slow)}")
        if any(model.budget != "latency" for model in models):
            say("for time ask for `--budget latency --target 0.8`")


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


def show_comparison(result: dict[str, Any]) -> None:
    """For each figure a row for each method, a column for each size.

    Args:
        result: what `compare.json` holds.
    """
    found = comparison_figures(result)
    keeps, rows = found.asked.keep, found.rows
    for figure in figures_in(rows):
        table = _table(columns([figure], keeps), title=f"{found.asked.model}, {figure}")
        for cells in by_method(rows, [figure], keeps):
            table.add_row(*cells)
        console.print(table)
    for method, error in dict.fromkeys((row.method, row.error) for row in rows):
        if error:
            say(f"{method}: {error}")
    if found.dense:
        console.print(f"dense {found.dense.measured}")
        for line in suite_said(found.dense.scores):
            say(line)


def show_evaluation(result: dict[str, Any]) -> None:
    """What `eval` measured, and over what; of a suite, what is lost and kept first."""
    if "suite" in result:
        show_scores(result)
    say(
        f"{result['model']}: {result['parameters']:,} parameters, "
        f"{result['block_parameters']:,} in blocks, {result['dtype']}"
    )
    if "suite" in result:
        return
    if "perplexity" in result:
        measured = from_json(Perplexity, result, result["model"])
        say(
            f"perplexity {measured}  ({measured.tokens:,} tokens of {result['text']}, "
            f"window {measured.window}, stride {measured.stride})"
        )
    if "tasks" in result:
        names = ("task", "metric", "accuracy", "standard error", "questions")
        table = _table(names, left=("task", "metric"))
        for name, found in result["tasks"].items():
            value, error = found[found["metric"]], found["stderr"]
            table.add_row(name, found["metric"], f"{value:.2%}", f"{error:.2%}", f"{found['n']:,}")
        table.add_row("average", "", f"{result['average']:.2%}", "", "")
        console.print(table)


def show_scores(result: dict[str, Any]) -> None:
    """What a model scores on a suite."""
    found: Scores = as_type(result, Scores, field=result["model"], hint="measure it again")
    said = []
    if found.general_ratio is not None:
        said.append(f"perplexity of the texts {ratio_said(found)}")
    if found.kept is not None:
        said.append(f"kept of the tasks {kept_said(found)}")
    say(f"{found.suite}: {', '.join(said) or 'no dense model to compare with'}")
    if found.texts:
        table = _table(("text", "perplexity", "dense", "ratio"))
        for name, text in found.texts.items():
            dense = "" if text.dense is None else with_error(text.dense, None)
            ratio = "" if text.ratio is None else with_error(text.ratio, text.ratio_stderr, 3)
            measured = with_error(text.perplexity, text.perplexity_stderr)
            table.add_row(name, measured, dense, ratio)
        console.print(table)
    if found.tasks:
        table = _table(
            ("task", "metric", "accuracy", "dense", "chance", "kept", "questions"),
            left=("task", "metric"),
        )
        for name, task in found.tasks.items():
            dense = "" if task.dense is None else percent_with_error(task.dense, None)
            kept = "" if task.kept is None else percent_with_error(task.kept, task.kept_stderr)
            right = percent_with_error(task.accuracy, task.stderr)
            chance = percent_with_error(task.chance, None)
            table.add_row(name, task.metric, right, dense, chance, kept, f"{task.n:,}")
        console.print(table)


def show_examination(result: dict[str, Any]) -> None:
    """What `doctor` found."""
    say(
        f"{result['model']}: supported ({result['model_type']}, {result['blocks']} blocks, "
        f"{result['mask_entries']:,} mask entries)"
    )
    say("sites of a block: " + ", ".join(f"{name} {n}" for name, n in result["sites"].items()))
    names = ("keep", "of all parameters", "block parameters", "all parameters", "weights")
    table = _table((*names, "block GFLOPs a token"), left=())
    for size in result["sizes"]:
        table.add_row(
            f"{size['keep']:g}",
            f"{size['keep_total']:.1%}",
            f"{size['block_parameters']:,}",
            f"{size['parameters']:,}",
            _megabytes(size["bytes"]),
            f"{size['gflops_per_token']:.3f}",
        )
    console.print(table)
    names = ("learning", "processes", "memory each", "fits", "masks", "time")
    table = _table(names, left=("learning",))
    for way in result["ways"]:
        table.add_row(
            way["name"],
            str(way["processes"]),
            f"{way['memory_bytes'] / 2**30:.1f} GiB",
            "yes" if way["fits"] else "no",
            "the same" if way["exact"] else "near",
            "" if way["learning_s"] is None else f"{way['learning_s'] / 3600:.2f} h",
        )
    console.print(table)
    where = f"{result['devices']} × " if result["devices"] > 1 else ""
    free = f"{where}{result['memory_free_bytes'] / 2**30:.1f} GiB are free"
    say(f"{free}: {result['advice']}")
    if "alignments" in result:
        _show_alignments(result["alignments"])


def _show_alignments(alignments: list[dict[str, Any]]) -> None:
    kinds = list(alignments[0]["shares"])
    table = _table(
        ("--align", *kinds, ""),
        left=(),
        title="half of the block parameters, time of the dense model",
    )
    for row in alignments:
        shares = (f"{row['shares'][kind]:.1%}" for kind in kinds)
        table.add_row(str(row["align"]), *shares, "chosen" if row["best"] else "")
    console.print(table)


def show_bench(result: dict[str, Any]) -> None:
    """Both models side by side under every workload."""
    found = bench_figures(result, "the benchmark")
    modes = [mode for mode in ("fused", "compiled") if getattr(found, mode)]
    models = f"{found.model} against {found.against}"
    say(", ".join([models, found.dtype, *modes, found.hardware["cpu"]]))
    names = ("work", "original", "pruned", "speed-up", "counted", "tokens/s", "time goes to")
    table = _table(names, left=("work", "time goes to"))
    for comparison, dense, pruned in found.rows:
        low, high = comparison.speedup_quartiles
        shares = pruned.time_shares.items()
        table.add_row(
            f"{dense.phase}, "
            + (f"{dense.length} tokens" if dense.phase == "prefill" else f"batch {dense.batch}"),
            *(f"{m.median_s * 1e3:.2f} ± {m.spread_s * 5e2:.2f} ms" for m in (dense, pruned)),
            f"×{comparison.speedup:.2f} ({low:.2f} to {high:.2f})",
            f"×{comparison.predicted_speedup:.2f}",
            f"{pruned.tokens_per_s:,.0f}",
            ", ".join(f"{part} {share:.0%}" for part, share in shares if share >= 0.005),
        )
    console.print(table)
    loads = found.loading
    for name, key, unit, scale in (
        ("load time", "load_s", "s", 1),
        ("peak memory", "peak_memory_bytes", "MB", 1e6),
        ("weights on disk", "weight_bytes", "MB", 1e6),
    ):
        dense, pruned = (getattr(load, key) / scale for load in loads)
        console.print(f"{name}: {dense:,.1f} -> {pruned:,.1f} {unit}")


def show_page(file: Path) -> None:
    """Where the page of a run lies."""
    say(f"page    {file}  ({file.stat().st_size / 1e3:,.0f} kB)")


def _table(
    columns: tuple[str, ...], left: tuple[str, ...] | None = None, title: str | None = None
) -> Table:
    """An empty table.

    Args:
        left: the columns that are aligned to the left. Default: the first one.
    """
    table = Table(title=title)
    for name in columns:
        is_left = name in (columns[:1] if left is None else left)
        table.add_column(name, justify="left" if is_left else "right")
    return table


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
