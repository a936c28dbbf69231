"""What a person sees: progress bars and tables, on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

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
        f"loss {figures['loss']:.3f}  keep {figures['keep']:.4f}  "
        f"{figures['tokens_per_s']:.0f} tokens/s"
    )


def show_models(result: dict[str, Any]) -> None:
    """Dense and pruned side by side, and where things lie."""
    source, dense, models = result["source"], result["dense"], result["models"]
    table = Table(title=f"{source['model']}, perplexity on {source['eval_text']}")
    table.add_column("")
    table.add_column("dense", justify="right")
    for model in models:
        table.add_column(f"keep {model['keep_asked']:g}", justify="right")

    def row(name: str, show: Callable[[dict[str, Any]], str], dense_too: bool = True) -> None:
        table.add_row(name, show(dense) if dense_too else "", *(show(model) for model in models))

    row("perplexity", with_error)
    row("perplexity, masked", lambda m: f"{m['perplexity_masked']:.2f}", dense_too=False)
    row("block parameters", lambda m: f"{m['block_parameters']:,}")
    row("of the dense ones", lambda m: f"{m['keep']:.4%}", dense_too=False)
    row("all parameters", lambda m: f"{m['parameters']:,}")
    row("of the dense ones", lambda m: f"{m['keep_total']:.4%}", dense_too=False)
    row("weights on disk", lambda m: f"{m['bytes'] / 1e6:,.1f} MB")
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
        f"{needed['policy_gradient'] / 2**30:.1f} forward only), {result['device']} has "
        f"{result['memory_free_bytes'] / 2**30:.1f} GiB free: {result['advice']}",
        soft_wrap=True,
    )
