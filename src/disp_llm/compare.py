"""Methods side by side: same model, text, budget, exporter and evaluation, a row a method and size.

    OUTPUT/  compare.json  compare.md  compare.png  METHOD/ (a run folder each, or one a size)

A row that is there is not made again; a method that fails leaves rows that say why.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from disp_llm.bench import Work, in_turn, runner
from disp_llm.budget import Budget
from disp_llm.commands import CompareCommand
from disp_llm.config import (
    ExportConfig,
    InputError,
    LearnConfig,
    PruneConfig,
    VariantName,
    apply_recipe,
    load_recipe,
    resolved,
)
from disp_llm.evaluate import perplexity, with_error
from disp_llm.export import count_parameters
from disp_llm.files import atomic, read_json, write_json
from disp_llm.learn import Task
from disp_llm.masks import layout_of
from disp_llm.methods import COUPLED, METHODS
from disp_llm.methods.context import Context
from disp_llm.models import Loaded, load, load_model
from disp_llm.prune import prune
from disp_llm.rewrites import REWRITES, Rewrite
from disp_llm.rewrites.rewrite import stored_numbers
from disp_llm.runs import Report, hardware, require_available, silent, versions
from disp_llm.text import Corpus, load_tokens

WORKS = {"prefill": Work("prefill", 512, 1), "decode": Work("decode", 512, 1)}
"""What is timed."""

CHECKPOINT_EVERY = 25
"""Steps, of methods that learn."""

FIGURES = ("perplexity", "perplexity_stderr", "keep", "block_parameters", "parameters")
"""Of a model; a failed row has none of them."""


def _paper(config: PruneConfig) -> PruneConfig:
    """The paper's recipe over our windows; its step size is for 10,000 steps, ten times it for a
    few hundred (docs/experiment-log.md)."""
    learn = {"length": config.learn.length, "learning_rate": 1e-2}
    return apply_recipe(apply_recipe(config, load_recipe("paper")), {"learn": learn})


def _policy_gradient(config: PruneConfig) -> PruneConfig:
    """Gao et al., Optimization-based Structural Pruning for LLMs without Back-Propagation (arXiv
    2406.10576): Bernoulli masks, learned by policy gradient from forward passes alone; they start
    at our scores."""
    learn = {"estimator": "policy_gradient", "temperature": 1.0, "penalty": 6.0}
    return apply_recipe(config, {"learn": learn})


def _masks_only(config: PruneConfig) -> PruneConfig:
    """Ours without scales: every weight that is kept is the original's."""
    return apply_recipe(config, {"learn": {"scale_rate": 0.0}})


def _coupled(config: PruneConfig) -> PruneConfig:
    """Ours where most others drop: the residual stream stays whole, so nothing is gathered from it
    or scattered into it, and KV heads go."""
    return replace(config, sites=COUPLED)


@dataclass(frozen=True)
class Variant:
    """Settings of `learned` that are a row of their own."""

    change: Callable[[PruneConfig], PruneConfig]
    one_size: bool
    """Whether it takes a run a size, as in its paper."""


VARIANTS: dict[VariantName, Variant] = {
    "masks_only": Variant(_masks_only, one_size=False),
    "coupled": Variant(_coupled, one_size=False),
    "paper": Variant(_paper, one_size=True),
    "policy_gradient": Variant(_policy_gradient, one_size=True),
}


def compare(command: CompareCommand, report: Report = silent) -> dict[str, Any]:
    """Makes the rows that are asked for and not there yet; returns what `compare.json` then holds.

    Raises:
        InputError: the output folder belongs to another comparison.
        Interrupted: a signal arrived; the same command goes on.
    """
    path = command.output_dir / "compare.json"
    asked: dict[str, Any] = {
        "model": command.model,
        "keep": list(command.keep),
        "steps": command.steps,
        "length": command.length,
    }
    for table in ("text", "evaluation", "scores", "machine"):
        asked[table] = resolved(getattr(command, table))
    result = _before(path, asked)
    yardstick = Yardstick(command)
    makers = rivals(command)
    places = {name: place for place, name in enumerate(makers)}
    for name, make_rows in makers.items():
        done = any(row["method"] == name and not row["error"] for row in result["rows"])
        if done or not {"all", name} & set(command.methods):
            continue

        def of_method(stage: str, step: int, steps: int, figures: dict, name: str = name) -> None:
            report(f"{name}: {stage}", step, steps, figures)

        rows = make_rows(command, name, yardstick, of_method)
        others = [row for row in result["rows"] if row["method"] != name]
        result["rows"] = sorted(others + rows, key=lambda row: places[row["method"]])
        result |= {"hardware": hardware(), "versions": versions()}
        if "dense" not in result:
            result |= {"dense": yardstick.dense_figures(of_method), "source": yardstick.sources}
        write_json(path, result)
        with atomic(command.output_dir / "compare.md") as temporary:
            temporary.write_text(markdown(result))
    return result


def _before(path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    if not path.exists():
        return {"asked": asked, "rows": []}
    result = read_json(path, "delete it; every row is made again")
    for key, now in asked.items():
        if result["asked"].get(key) != now:
            raise InputError(
                f"{path.parent} compares something else ({key}: {result['asked'].get(key)})",
                flag="--output-dir",
                mend="name another folder",
            )
    return result


class Yardstick:
    """Original model and texts, loaded when first needed, and what is measured with them."""

    def __init__(self, command: CompareCommand):
        self.command = command

    @cached_property
    def loaded(self) -> Loaded:
        return load(self.command.model, self.command.machine, dense_only=True)

    @cached_property
    def _texts(self) -> tuple[Corpus, torch.Tensor, dict[str, str]]:
        return load_tokens(self.command.text, self.loaded.tokenizer, self.loaded.opening)

    @property
    def corpus(self) -> Corpus:
        return self._texts[0]

    @property
    def sources(self) -> dict[str, str]:
        return self.loaded.source | self._texts[2]

    def perplexity(self, model: PreTrainedModel, report: Report) -> dict[str, Any]:
        def on_window(done: int, total: int) -> None:
            report("perplexity", done, total, {})

        stream, settings = self._texts[1], self.command.evaluation
        return asdict(perplexity(model, self.loaded.family, stream, settings, on_window))

    def dense_figures(self, report: Report) -> dict[str, Any]:
        model = self.loaded.model
        figures = self.perplexity(model, report) | {"parameters": count_parameters(model)}
        return figures | {"block_parameters": stored_numbers(model, self.loaded.family)}

    def speed(self, model: PreTrainedModel, report: Report) -> dict[str, float]:
        """Medians of milliseconds, and of how many times as fast as the original, timed in turn."""
        figures = {}
        if self.command.rounds:
            for phase, work in WORKS.items():

                def on_round(done: int, phase: str = phase) -> None:
                    report(f"timing {phase}", done, self.command.rounds, {})

                runs = [runner(one, work) for one in (self.loaded.model, model)]
                dense, own = in_turn(runs, self.command.rounds, on_round)
                ratios = [before / after for before, after in zip(dense, own, strict=True)]
                figures[f"{phase}_ms"] = 1e3 * statistics.median(own)
                figures[f"{phase}_speedup"] = statistics.median(ratios)
        return figures


def _failed(name: str, keep: float, error: Exception) -> dict[str, Any]:
    return (
        {"method": name, "keep_asked": keep}
        | dict.fromkeys((*FIGURES, "flops", "tokens_seen", "seconds"))
        | {"error": str(error).strip().splitlines()[0]}
    )


def rivals(command: CompareCommand) -> dict[str, Callable[..., list[dict[str, Any]]]]:
    """How the rows of every method are made, in the order of the table."""
    common = PruneConfig(
        command.model,
        text=command.text,
        evaluation=command.evaluation,
        scores=command.scores,
        export=ExportConfig(align=1),
        machine=command.machine,
    )
    makers: dict[str, Callable[..., list[dict[str, Any]]]] = {}
    for method, found in METHODS.items():
        config = replace(common, method=method)
        makers[method] = partial(pruned_rows, config=config, apart=found.one_size)
    for variant, settings in VARIANTS.items():
        config = settings.change(common)
        makers[variant] = partial(pruned_rows, config=config, apart=settings.one_size)
    for name, rewrite in REWRITES.items():
        makers[name] = partial(rewritten_rows, rewrite=rewrite)
    return makers


def pruned_rows(
    command: CompareCommand,
    name: str,
    yardstick: Yardstick,
    report: Report,
    config: PruneConfig,
    apart: bool,
) -> list[dict[str, Any]]:
    """One row a size from one run of `prune`, or from a run a size (`apart`); `seconds` is what
    choosing took."""
    rows = []
    for keeps in [(keep,) for keep in command.keep] if apart else [command.keep]:
        folder = command.output_dir / name
        folder = folder / f"keep-{keeps[0]:g}" if apart else folder
        learn = replace(
            config.learn,
            steps=command.steps,
            length=command.length,
            checkpoint_every=CHECKPOINT_EVERY,
        )
        resume = (folder / "config.toml").exists()
        config = replace(config, keep=keeps, output_dir=folder, learn=learn, resume=resume)
        try:
            require_available(config)
            result = prune(config, report)
        except InputError as error:
            rows += [_failed(name, keep, error) for keep in keeps]
            continue
        for entry in result["models"]:
            figures = {key: entry[key] for key in ("keep_asked", *FIGURES)}
            dense = yardstick.loaded.model
            compact = load_model(entry["folder"], dense.device, dense.dtype)
            rows.append(
                {"method": name}
                | figures
                | {"flops": entry["keep"]}
                | yardstick.speed(compact, report)
                | {"tokens_seen": result["tokens_seen"], "seconds": result["choosing_s"]}
                | {"error": None}
            )
    return rows


def rewritten_rows(
    command: CompareCommand, name: str, yardstick: Yardstick, report: Report, rewrite: Rewrite
) -> list[dict[str, Any]]:
    """One row a size from a rewriting method; `seconds` is its preparation and that size."""
    loaded = yardstick.loaded
    budget = Budget(layout_of(loaded.model, loaded.family))
    seed = command.machine.seed
    task = Task(loaded.model, loaded.family, yardstick.corpus, budget, command.keep, 1, seed)
    context = Context(
        command.scores,
        LearnConfig(steps=command.steps, length=command.length),
        command.output_dir / name,
        Accelerator(cpu=loaded.model.device.type == "cpu"),
        lambda done, total: report("calibrating", done, total, {}),
        lambda metrics: None,
    )
    failures = (InputError, torch.linalg.LinAlgError, torch.OutOfMemoryError)
    tokens = command.scores.tokens * rewrite.reads_text
    try:
        began = time.perf_counter()
        make = rewrite.prepare(task, context)
        preparing = time.perf_counter() - began
    except failures as error:
        return [_failed(name, keep, error) for keep in command.keep]
    rows = []
    for keep in command.keep:
        try:
            began = time.perf_counter()
            made = make(keep)
            seconds = preparing + time.perf_counter() - began
        except failures as error:
            rows.append(_failed(name, keep, error))
            continue
        measured = yardstick.perplexity(made.model, report)
        outside = count_parameters(made.model) - stored_numbers(made.model, loaded.family)
        rows.append(
            {"method": name, "keep_asked": keep}
            | {key: measured[key] for key in ("perplexity", "perplexity_stderr")}
            | {"keep": made.stored / budget.full, "block_parameters": round(made.stored)}
            | {"parameters": round(outside + made.stored), "flops": made.multiplied / budget.full}
            | yardstick.speed(made.model, report)
            | {"tokens_seen": tokens, "seconds": round(seconds, 1), "error": None}
        )
    return rows


def by_method(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Of every method its name, a perplexity a size (– where there is none), tokens and seconds."""
    found: list[tuple[str, ...]] = []
    for method in dict.fromkeys(row["method"] for row in result["rows"]):
        rows = {row["keep_asked"]: row for row in result["rows"] if row["method"] == method}
        sizes = [rows[keep] for keep in result["asked"]["keep"]]
        cells = [with_error(row) if row["perplexity"] else "–" for row in sizes]
        good = [row for row in rows.values() if row["perplexity"]]
        tokens = " / ".join(dict.fromkeys(f"{row['tokens_seen']:,}" for row in good))
        seconds = " / ".join(dict.fromkeys(f"{row['seconds']:.0f}" for row in good))
        found.append((method, *cells, tokens, seconds))
    return found


def markdown(result: dict[str, Any]) -> str:
    """A table with a row a method and a column a size, and one of what every model costs."""
    keeps, rows = result["asked"]["keep"], result["rows"]
    lines = ["| method | " + " | ".join(f"keep {keep:g}" for keep in keeps) + " | tokens | s |"]
    lines.append("|---|" + "---:|" * (len(keeps) + 2))
    lines += [f"| {' | '.join(cells)} |" for cells in by_method(result)]
    if "dense" in result:
        lines += ["", f"Dense: {with_error(result['dense'])}, {result['source']['eval_text']}."]
    failed: dict[str, dict[str, None]] = {}
    for row in rows:
        if row["error"]:
            failed.setdefault(row["error"], {})[row["method"]] = None
    if failed:
        lines += ["", *(f"- {', '.join(methods)}: {error}" for error, methods in failed.items())]
    if any("prefill_ms" in row for row in rows):
        lines += ["", *_costs(rows)]
    return "\n".join(lines) + "\n"


def _costs(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| method | asked | stored in blocks | all parameters | FLOPs in blocks "
        "| prefill 512, ms | decode, ms |",
        "|---|" + "---:|" * 6,
    ]
    for row in rows:
        if row["perplexity"] and "prefill_ms" in row:
            times = (f"{row[f'{p}_ms']:.0f} (×{row[f'{p}_speedup']:.2f})" for p in WORKS)
            lines.append(
                f"| {row['method']} | {row['keep_asked']:g} | {row['keep']:.4f} | "
                f"{row['parameters'] / 1e6:.1f} M | {row['flops']:.2f} | {' | '.join(times)} |"
            )
    return lines
