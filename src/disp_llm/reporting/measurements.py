"""Shows the results of `doctor`, `bench` and `eval` as tables and lines."""

from typing import Any

from disp_llm.reporting.tables import Table, megabytes
from disp_llm.reporting.terminal import say
from disp_llm.runs.results import workload_said
from disp_llm.runs.scores import paired_said, percent_with_error, with_error


def show_examination(result: dict[str, Any]) -> None:
    """Prints the result of `doctor`."""
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
    sizes = [
        (
            f"{size['keep']:g}",
            f"{size['keep_total']:.1%}",
            f"{size['block_parameters']:,}",
            f"{size['parameters']:,}",
            megabytes(size["bytes"]),
            "×{:.1f} to ×{:.1f}".format(*size["expected"]),
        )
        for size in result["sizes"]
    ]
    Table((*names, "perplexity"), sizes).show()
    say("perplexity: expected times the original's, from six sizes of three models up to 630 M")
    if "fit" in result:
        fits = [
            (one["bits"], f"{one['keep']:g}", f"×{one['expected']:.2f}") for one in result["fits"]
        ]
        if fits:
            names = ("weights", f"keep in {result['fit']}", "expected perplexity, rounding aside")
            Table(names, fits).show()
        fewer = "with fewer tokens" if fits else "not with all tokens; with fewer"
        say(f"{result['fit']}: {fewer}, more of the blocks stays; `prune --fit` measures both")
    plans = [
        (
            plan["name"],
            str(plan["processes"]),
            f"{plan['memory_bytes'] / 2**30:.1f} GiB",
            f"{plan['seconds'] / 60:,.0f} min",
            "yes" if plan["fits"] else "no",
        )
        for plan in result["plans"]
    ]
    Table(("learning", "processes", "memory each", "takes about", "fits"), plans).show()
    where = f"{result['devices']} × " if result["devices"] > 1 else ""
    free = f"{where}{result['memory_free_bytes'] / 2**30:.1f} GiB are free"
    say(f"{free}: {result['advice']}")


def show_bench(result: dict[str, Any]) -> None:
    """Prints both models side by side for every workload."""
    modes = ["compiled"] if result["compiled"] else []
    models = f"{result['model']} against {result['against']}"
    say(", ".join([models, result["dtype"], *modes, result["hardware"]["cpu"]]))
    timed = result["results"]
    pairs = zip(timed[::2], timed[1::2], result["comparisons"], strict=True)
    names = ("work", "original", "pruned", "speed-up", "counted", "tokens/s")
    Table(names, [_workload(*pair) for pair in pairs]).show()
    for name, key, unit, scale in (
        ("load time", "load_s", "s", 1),
        ("peak memory", "peak_memory_bytes", "MB", 1e6),
        ("weights on disk", "weight_bytes", "MB", 1e6),
    ):
        original, pruned = (load[key] / scale for load in result["loading"])
        say(f"{name}: {original:,.1f} -> {pruned:,.1f} {unit}")


def _workload(
    original: dict[str, Any], pruned: dict[str, Any], comparison: dict[str, Any]
) -> tuple[str, ...]:
    low, high = comparison["speedup_quartiles"]
    return (
        workload_said(original["phase"], original["length"], original["batch"]),
        *(
            f"{timed['median_s'] * 1e3:.2f} ± {timed['spread_s'] * 5e2:.2f} ms"
            for timed in (original, pruned)
        ),
        f"×{comparison['speedup']:.2f} ({low:.2f} to {high:.2f})",
        f"×{comparison['predicted_speedup']:.2f}",
        f"{pruned['tokens_per_s']:,.0f}",
    )


def show_evaluation(result: dict[str, Any]) -> None:
    """Prints what `eval` measured and on what; for a suite, its ratio and kept share first."""
    if "suite" in result:
        ratio = paired_said(result.get("general_ratio"), result.get("general_ratio_stderr"))
        kept = percent_with_error(result.get("kept"), result.get("kept_stderr"))
        said = [f"perplexity of the texts {ratio}"] * bool(ratio)
        said += [f"kept of the tasks {kept}"] * bool(kept)
        say(f"{result['suite']}: {', '.join(said) or 'no original to compare with'}")
    say(
        f"{result['model']}: {result['parameters']:,} parameters, "
        f"{result['block_parameters']:,} in blocks, {result['dtype']}"
    )
    if "perplexity" in result:
        measured = with_error(result["perplexity"], result["perplexity_stderr"])
        over = f"{result['tokens']:,} tokens of {result['text']}, window {result['window']}"
        say(f"perplexity {measured}  ({over})")
    if "bits_per_byte" in result:
        say(f"bits per byte {result['bits_per_byte']:.4f}")
    if "answers" in result:
        found = result["answers"]
        score = with_error(found["score"], found["score_stderr"], 3)
        say(f"{found['metric']} {score}  ({found['answers']:,} answers)")
    if result.get("texts"):
        texts = [
            (
                name,
                with_error(text["perplexity"], text.get("perplexity_stderr")),
                with_error(text.get("original"), None),
                with_error(text.get("ratio"), text.get("ratio_stderr"), 3),
            )
            for name, text in result["texts"].items()
        ]
        Table(("text", "perplexity", "original", "ratio"), texts).show()
    if result.get("tasks"):
        names = ("task", "metric", "accuracy", "original", "chance", "kept", "questions", "shots")
        tasks = [
            (
                name,
                task["metric"],
                percent_with_error(task[task["metric"]], task["stderr"]),
                percent_with_error(task.get("original"), None),
                percent_with_error(task.get("chance"), None),
                percent_with_error(task.get("kept"), task.get("kept_stderr")),
                f"{task['n']:,}",
                str(task.get("shots", 0)),
            )
            for name, task in result["tasks"].items()
        ]
        Table(names, tasks, left=names[1:2]).show()
    if "average" in result:
        say(f"average of the tasks {percent_with_error(result['average'], None)}")
