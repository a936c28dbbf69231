"""What `doctor`, `bench` and `eval` have found, as tables and lines."""

from typing import Any

from disp_llm.config.schema import as_type
from disp_llm.reporting.tables import Table, megabytes
from disp_llm.reporting.terminal import say
from disp_llm.runs.results import MEASURED_AGAIN, workload_said
from disp_llm.runs.scores import (
    Perplexity,
    Scores,
    kept_said,
    percent_with_error,
    ratio_said,
    with_error,
)


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
    sizes = [
        (
            f"{size['keep']:g}",
            f"{size['keep_total']:.1%}",
            f"{size['block_parameters']:,}",
            f"{size['parameters']:,}",
            megabytes(size["bytes"]),
            f"{size['gflops_per_token']:.3f}",
        )
        for size in result["sizes"]
    ]
    Table((*names, "block GFLOPs a token"), sizes).show()
    plans = [
        (
            plan["name"],
            str(plan["processes"]),
            f"{plan['memory_bytes'] / 2**30:.1f} GiB",
            "yes" if plan["fits"] else "no",
        )
        for plan in result["plans"]
    ]
    Table(("learning", "processes", "memory each", "fits"), plans).show()
    where = f"{result['devices']} × " if result["devices"] > 1 else ""
    free = f"{where}{result['memory_free_bytes'] / 2**30:.1f} GiB are free"
    say(f"{free}: {result['advice']}")


def show_bench(result: dict[str, Any]) -> None:
    """Both models side by side under every workload."""
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
    """What `eval` measured, and over what; of a suite, what is lost and kept first."""
    if "suite" in result:
        _show_scores(result)
    say(
        f"{result['model']}: {result['parameters']:,} parameters, "
        f"{result['block_parameters']:,} in blocks, {result['dtype']}"
    )
    if "suite" in result:
        return
    if "perplexity" in result:
        hint = MEASURED_AGAIN
        measured: Perplexity = as_type(result, Perplexity, field=result["model"], hint=hint)
        say(
            f"perplexity {measured}  ({measured.tokens:,} tokens of {result['text']}, "
            f"window {measured.window})"
        )
    if "answers" in result:
        found = result["answers"]
        score = with_error(found["score"], found["score_stderr"], 3)
        say(f"{found['metric']} {score}  ({found['answers']:,} answers)")
    if "tasks" in result:
        rows = [
            (
                name,
                task["metric"],
                f"{task[task['metric']]:.2%}",
                "" if task["stderr"] is None else f"{task['stderr']:.2%}",
                f"{task['n']:,}",
                str(task["shots"]),
            )
            for name, task in result["tasks"].items()
        ]
        rows.append(("average", "", f"{result['average']:.2%}", "", "", ""))
        names = ("task", "metric", "accuracy", "standard error", "questions", "shots")
        Table(names, rows, left=names[1:2]).show()


def _show_scores(result: dict[str, Any]) -> None:
    """What a model scores on a suite."""
    found: Scores = as_type(result, Scores, field=result["model"], hint="measure it again")
    said = [f"perplexity of the texts {ratio_said(found)}"] if ratio_said(found) else []
    said += [f"kept of the tasks {kept_said(found)}"] if kept_said(found) else []
    say(f"{found.suite}: {', '.join(said) or 'no original to compare with'}")
    if found.texts:
        texts = [
            (
                name,
                with_error(text.perplexity, text.perplexity_stderr),
                with_error(text.original, None),
                with_error(text.ratio, text.ratio_stderr, 3),
            )
            for name, text in found.texts.items()
        ]
        Table(("text", "perplexity", "original", "ratio"), texts).show()
    if found.tasks:
        tasks = [
            (
                name,
                task.metric,
                percent_with_error(task.accuracy, task.stderr),
                percent_with_error(task.original, None),
                percent_with_error(task.chance, None),
                percent_with_error(task.kept, task.kept_stderr),
                f"{task.n:,}",
                str(task.shots),
            )
            for name, task in found.tasks.items()
        ]
        names = ("task", "metric", "accuracy", "original", "chance", "kept", "questions", "shots")
        Table(names, tasks, left=names[1:2]).show()
