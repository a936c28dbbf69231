"""What a person sees: progress bars and tables, on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from disp_llm.compare import by_method
from disp_llm.evaluate import with_error

console = Console(stderr=True, highlight=False)
if not console.is_terminal:
    console.width = 120  # a log file has no width of its own


@contextmanager
def progress() -> Iterator[Callable[[str, int, int, dict], None]]:
    """A bar a stage, with loss, keep and tokens/s beside it while masks are learned.

    Where standard error is no terminal, a stage is announced in one line and a tenth of its way
    in another.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bars: dict[str, Any] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as drawn:

        def report(stage: str, done: int, total: int, figures: dict[str, Any]) -> None:
            text = _figures(figures)
            if console.is_terminal:
                if stage not in bars:
                    bars[stage] = drawn.add_task(stage, total=total, figures="")
                drawn.update(bars[stage], completed=done, figures=text)
            elif stage not in bars or done == total or done * 10 // total > bars[stage]:
                bars[stage] = done * 10 // total
                console.print(f"{stage} {done}/{total} {text}".rstrip(), soft_wrap=True)

        yield report


def _figures(figures: dict[str, Any]) -> str:
    if "loss" not in figures:
        return ""
    return (
        f"loss {figures['loss']:.3f}  "
        + (f"keep {figures['keep']:.4f}  " if "keep" in figures else "")
        + f"{figures['tokens_per_s']:.0f} tokens/s"
    )


def show_models(result: dict[str, Any]) -> None:
    """Dense and pruned side by side, and where things lie."""
    source, dense, models = result["source"], result["dense"], result["models"]
    table = Table(title=f"{source['model']}, perplexity on {source['eval_text']}")
    table.add_column("")
    table.add_column("dense", justify="right")
    for model in models:
        size = model["size"]
        table.add_column(
            f"keep {size}" if model["budget"] == "params" else size.replace("-", " "),
            justify="right",
        )

    def row(name: str, show: Callable[[dict[str, Any]], str], dense_too: bool = True) -> None:
        table.add_row(name, show(dense) if dense_too else "", *(show(model) for model in models))

    row("perplexity", with_error)
    row("perplexity, masked", lambda m: f"{m['perplexity_masked']:.2f}", dense_too=False)
    row("block parameters", lambda m: f"{m['block_parameters']:,}")
    row("of the dense ones", lambda m: f"{m['keep']:.4%}", dense_too=False)
    row("all parameters", lambda m: f"{m['parameters']:,}")
    row("of the dense ones", lambda m: f"{m['keep_total']:.4%}", dense_too=False)
    row("weights on disk", lambda m: f"{m['bytes'] / 1e6:,.1f} MB")
    for kind in ("flops", "bytes", "latency"):
        if any(m["budget"] == kind for m in models):
            row(
                f"{kind}, of the dense ones",
                lambda m, kind=kind: f"{_held(m):.2%}" if m["budget"] == kind else "",
                dense_too=False,
            )
    for key in sorted({key for m in models for key in m if key.startswith("max_logit_error_")}):
        dtype = key.removeprefix("max_logit_error_")
        row(
            f"export vs masked, {dtype}",
            lambda m, key=key: f"{m[key]:.1e}" if key in m else "not checked",
            dense_too=False,
        )
    console.print(table)
    for model in models:
        console.print(f"model   {model['folder']}", soft_wrap=True)
    if "keep_by_penalty" in result:
        console.print(f"the penalty alone arrived at keep {result['keep_by_penalty']:.4f}")
    console.print(
        f"run     {result['run']}  ({result['tokens_seen']:,} tokens seen, "
        f"{result['seconds']:.0f} s, peak {result['peak_memory_bytes'] / 2**30:.2f} GiB)",
        soft_wrap=True,
    )


def _held(model: dict[str, Any]) -> float:
    """Share of what the budget of a model holds: measured where that is time, else counted."""
    return model["latency"]["measured_share"] if "latency" in model else model["share_of_budget"]


def show_recovery(result: dict[str, Any]) -> None:
    """Before, after, and the teacher where there is one."""
    source, model = result["source"], result["model"]
    taught = f", teacher {with_error(result['teacher'])}" if "teacher" in result else ""
    console.print(
        f"{source['model']}, perplexity on {source['eval_text']}: "
        f"{with_error(result['before'])} -> {with_error(model)}{taught}",
        soft_wrap=True,
    )
    console.print(f"model   {model['folder']}", soft_wrap=True)
    console.print(
        f"run     {result['run']}  ({result['tokens_seen']:,} tokens, {result['seconds']:.0f} s, "
        f"peak {result['peak_memory_bytes'] / 2**30:.2f} GiB)",
        soft_wrap=True,
    )


def show_comparison(result: dict[str, Any]) -> None:
    """A row a method, a column a size."""
    keeps = result["asked"]["keep"]
    table = Table(title=f"{result['asked']['model']}, perplexity")
    table.add_column("method")
    for keep in keeps:
        table.add_column(f"keep {keep:g}", justify="right")
    table.add_column("tokens", justify="right")
    table.add_column("s", justify="right")
    for cells in by_method(result):
        table.add_row(*cells)
    console.print(table)
    for method, error in dict.fromkeys((r["method"], r["error"]) for r in result["rows"]):
        if error:
            console.print(f"{method}: {error}", soft_wrap=True, highlight=False)
    if "dense" in result:
        console.print(f"dense {with_error(result['dense'])}")


def show_evaluation(result: dict[str, Any]) -> None:
    """What was measured, and over what."""
    console.print(
        f"{result['model']}: {result['parameters']:,} parameters, "
        f"{result['block_parameters']:,} in blocks, {result['dtype']}",
        soft_wrap=True,
    )
    if "perplexity" in result:
        console.print(
            f"perplexity {with_error(result)}  ({result['tokens']:,} tokens of {result['text']}, "
            f"window {result['window']}, stride {result['stride']})",
            soft_wrap=True,
        )
    if "tasks" in result:
        table = Table()
        for name in ("task", "metric", "accuracy", "standard error", "questions"):
            table.add_column(name, justify="left" if name in ("task", "metric") else "right")
        for name, found in result["tasks"].items():
            value, error = found[found["metric"]], found["stderr"]
            table.add_row(name, found["metric"], f"{value:.2%}", f"{error:.2%}", f"{found['n']:,}")
        table.add_row("average", "", f"{result['average']:.2%}", "", "")
        console.print(table)


def show_examination(result: dict[str, Any]) -> None:
    """What `doctor` found."""
    console.print(
        f"{result['model']}: supported ({result['model_type']}, {result['blocks']} blocks, "
        f"{result['mask_entries']:,} mask entries)",
        soft_wrap=True,
    )
    sites = ", ".join(f"{name} {entries}" for name, entries in result["sites"].items())
    console.print(f"sites of a block: {sites}", soft_wrap=True)
    table = Table()
    for name in ("keep", "of all parameters", "block parameters", "all parameters", "weights"):
        table.add_column(name, justify="right")
    table.add_column("block GFLOPs a token", justify="right")
    for size in result["sizes"]:
        table.add_row(
            f"{size['keep']:g}",
            f"{size['keep_total']:.1%}",
            f"{size['block_parameters']:,}",
            f"{size['parameters']:,}",
            f"{size['bytes'] / 1e6:,.1f} MB",
            f"{size['gflops_per_token']:.3f}",
        )
    console.print(table)
    needed = result["memory_needed_bytes"]
    console.print(
        f"learning needs about {needed['learning'] / 2**30:.1f} GiB "
        f"({needed['gradient_checkpointing'] / 2**30:.1f} with gradient checkpointing, "
        f"{needed['forward_only'] / 2**30:.1f} forward only), {result['device']} has "
        f"{result['memory_free_bytes'] / 2**30:.1f} GiB free: {result['advice']}",
        soft_wrap=True,
    )
    if "alignments" in result:
        kinds = list(result["alignments"][0]["shares"])
        timed = Table(title="half of the block parameters, time of the dense model")
        for column in ("--align", *kinds, ""):
            timed.add_column(column, justify="right")
        for row in result["alignments"]:
            shares = (f"{row['shares'][kind]:.1%}" for kind in kinds)
            timed.add_row(str(row["align"]), *shares, "chosen" if row["best"] else "")
        console.print(timed)


def show_bench(result: dict[str, Any]) -> None:
    """Both models side by side for every kind of work."""
    modes = [mode for mode in ("fused", "compiled") if result[mode]]
    console.print(
        ", ".join(
            [
                f"{result['model']} against {result['against']}",
                result["dtype"],
                *modes,
                result["hardware"]["cpu"],
            ]
        ),
        soft_wrap=True,
    )
    table = Table()
    for name in ("work", "original", "pruned", "speed-up", "counted", "tokens/s", "time goes to"):
        table.add_column(name, justify="left" if name in ("work", "time goes to") else "right")
    pairs = zip(result["results"][::2], result["results"][1::2], strict=True)
    for compared, (dense, pruned) in zip(result["comparisons"], pairs, strict=True):
        of = f"{dense['length']} tokens" if dense["phase"] == "prefill" else ""
        low, high = compared["speedup_quartiles"]
        shares = pruned["time_shares"]
        table.add_row(
            f"{dense['phase']}, {of or 'batch ' + str(dense['batch'])}",
            *(f"{m['median_s'] * 1e3:.2f} ± {m['spread_s'] * 5e2:.2f} ms" for m in (dense, pruned)),
            f"×{compared['speedup']:.2f} ({low:.2f} to {high:.2f})",
            f"×{compared['predicted_speedup']:.2f}",
            f"{pruned['tokens_per_s']:,.0f}",
            ", ".join(f"{part} {share:.0%}" for part, share in shares.items() if share >= 0.005),
        )
    console.print(table)
    dense, pruned = result["loading"]
    for name, key, unit, scale in (
        ("load time", "load_s", "s", 1),
        ("peak memory", "peak_memory_bytes", "MB", 1e6),
        ("weights on disk", "weight_bytes", "MB", 1e6),
    ):
        console.print(f"{name}: {dense[key] / scale:,.1f} -> {pruned[key] / scale:,.1f} {unit}")
