"""What a model can be and do on a machine, as tables; what all tables share."""

from pathlib import Path
from typing import Any

from rich.table import Table

from disp_llm.reporting.reading import bench_figures
from disp_llm.reporting.terminal import results, say
from disp_llm.runs.results import workload_said


def new_table(
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


def megabytes(count: int) -> str:
    """`269.0 MB`."""
    return f"{count / 1e6:,.1f} MB"


def show_examination(result: dict[str, Any]) -> None:
    """What `doctor` found."""
    say(
        f"{result['model']}: supported ({result['model_type']}, {result['blocks']} blocks, "
        f"{result['mask_entries']:,} mask entries)"
    )
    if result["other_parameters"]:
        parts = ", ".join(f"{name} {n:,}" for name, n in result["other_parameters"].items())
        say(f"pruned is the language model; parameters that stay: {parts}")
    widths = (
        f"{name} {least:,}" + (f" to {most:,}" if most > least else "")
        for name, (least, most) in result["sites"].items()
    )
    say(f"entries of a block's sites: {', '.join(widths)}")
    names = ("keep", "of all parameters", "block parameters", "all parameters", "weights")
    table = new_table((*names, "block GFLOPs a token"), left=())
    for size in result["sizes"]:
        table.add_row(
            f"{size['keep']:g}",
            f"{size['keep_total']:.1%}",
            f"{size['block_parameters']:,}",
            f"{size['parameters']:,}",
            megabytes(size["bytes"]),
            f"{size['gflops_per_token']:.3f}",
        )
    results.print(table)
    names = ("learning", "processes", "memory each", "fits", "time")
    table = new_table(names, left=("learning",))
    for plan in result["plans"]:
        table.add_row(
            plan["name"],
            str(plan["processes"]),
            f"{plan['memory_bytes'] / 2**30:.1f} GiB",
            "yes" if plan["fits"] else "no",
            f"{plan['learning_s'] / 3600:.2f} h",
        )
    results.print(table)
    where = f"{result['devices']} × " if result["devices"] > 1 else ""
    free = f"{where}{result['memory_free_bytes'] / 2**30:.1f} GiB are free"
    say(f"{free}: {result['advice']}")
    if "alignments" in result:
        _show_alignments(result["alignments"])


def _show_alignments(alignments: list[dict[str, Any]]) -> None:
    kinds = list(alignments[0]["shares"])
    table = new_table(
        ("--align", *kinds, ""),
        left=(),
        title="half of the block parameters, time of the dense model",
    )
    for row in alignments:
        shares = (f"{row['shares'][kind]:.1%}" for kind in kinds)
        table.add_row(str(row["align"]), *shares, "chosen" if row["best"] else "")
    results.print(table)


def show_bench(result: dict[str, Any]) -> None:
    """Both models side by side under every workload."""
    found = bench_figures(result, "the benchmark")
    modes = ["compiled"] if found.compiled else []
    models = f"{found.model} against {found.against}"
    say(", ".join([models, found.dtype, *modes, found.hardware["cpu"]]))
    names = ("work", "original", "pruned", "speed-up", "counted", "tokens/s", "time goes to")
    table = new_table(names, left=("work", "time goes to"))
    for comparison, dense, pruned in found.rows:
        low, high = comparison.speedup_quartiles
        shares = pruned.time_shares.items()
        table.add_row(
            workload_said(dense.phase, dense.length, dense.batch),
            *(f"{m.median_s * 1e3:.2f} ± {m.spread_s * 5e2:.2f} ms" for m in (dense, pruned)),
            f"×{comparison.speedup:.2f} ({low:.2f} to {high:.2f})",
            f"×{comparison.predicted_speedup:.2f}",
            f"{pruned.tokens_per_s:,.0f}",
            ", ".join(f"{part} {share:.0%}" for part, share in shares if share >= 0.005),
        )
    results.print(table)
    loads = found.loading
    for name, key, unit, scale in (
        ("load time", "load_s", "s", 1),
        ("peak memory", "peak_memory_bytes", "MB", 1e6),
        ("weights on disk", "weight_bytes", "MB", 1e6),
    ):
        dense, pruned = (getattr(load, key) / scale for load in loads)
        results.print(f"{name}: {dense:,.1f} -> {pruned:,.1f} {unit}")


def show_page(file: Path) -> None:
    """Where the page of a run lies."""
    say(f"page    {file}  ({file.stat().st_size / 1e3:,.0f} kB)")
