"""How the rows of each method of a comparison are made: by runs of `prune`, or by a baseline."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from transformers import PreTrainedModel

from disp_llm.commands.front import Caller, Inputs
from disp_llm.commands.prune import prune_with
from disp_llm.commands.reference import Reference, shared_settings, with_steps
from disp_llm.commands.variants import VARIANTS
from disp_llm.config.compare import CompareConfig
from disp_llm.config.errors import InputError
from disp_llm.config.prune import PruneConfig
from disp_llm.data.named import InMemory
from disp_llm.masks.budget import Budget
from disp_llm.masks.prunable import PrunableModel
from disp_llm.methods import all_methods
from disp_llm.methods.baselines import all_baselines
from disp_llm.methods.parts.baseline import Baseline, BaselineModel, stored_numbers
from disp_llm.models.devices import start_process
from disp_llm.models.loading import load_model
from disp_llm.runs.folder import Run
from disp_llm.runs.job import Job
from disp_llm.runs.progress import ProgressCallback
from disp_llm.runs.rows import ComparisonRow
from disp_llm.runs.scores import Scores
from disp_llm.training.problem import PruningProblem

FAILURES = (InputError, torch.linalg.LinAlgError, torch.OutOfMemoryError)
"""What leaves a row that says why, and lets the other methods go on."""


@dataclass(frozen=True)
class Comparison:
    """What all rows of one comparison share."""

    config: CompareConfig
    reference: Reference
    caller: Caller
    dense: Scores | None = None
    """What the original scores on the suite, if there is one."""

    def progress(self, method: str) -> ProgressCallback:
        """Reports the stages of one method under its name."""

        def of_method(stage: str, done: int, total: int, figures: dict) -> None:
            assert self.caller.progress is not None
            self.caller.progress(f"{method}: {stage}", done, total, figures)

        return of_method

    def scores(self, model: PreTrainedModel, method: str) -> Scores | None:
        """What a model scores on the suite, against the original; None without a suite. Runs of
        `prune` are not asked to measure it: they would each measure the original too."""
        target = PrunableModel(model, self.reference.dense.family)
        measuring = self.reference.measuring(self.progress(method))
        return measuring.scores(target, "suite", self.dense)


RowMaker = Callable[[Comparison, str], list[ComparisonRow]]


def row_makers(comparison: Comparison) -> dict[str, RowMaker]:
    """How the rows of every method are made, in the order of the table."""
    common = shared_settings(comparison.config)
    makers: dict[str, RowMaker] = {}
    for name, method in all_methods().items():
        config = replace(common, method=name)
        makers[name] = partial(pruned_rows, settings=config, one_size=method.one_size)
    for name, variant in VARIANTS.items():
        config = with_steps(variant.change(common), comparison.config)
        makers[name] = partial(pruned_rows, settings=config, one_size=variant.one_size)
    for name, baseline in all_baselines().items():
        makers[name] = partial(baseline_rows, baseline=baseline)
    return makers


def failed(name: str, keep: float, error: Exception) -> ComparisonRow:
    """A row that says in one line why it has no figures."""
    return ComparisonRow(name, keep, error=str(error).strip().splitlines()[0])


def pruned_rows(
    comparison: Comparison, name: str, settings: PruneConfig, one_size: bool
) -> list[ComparisonRow]:
    """One row a size from one run of `prune`, or from a run a size (`one_size`); `seconds` is what
    choosing took."""
    rows: list[ComparisonRow] = []
    asked = comparison.config
    caller = replace(comparison.caller, progress=comparison.progress(name))
    inputs = Inputs(texts=InMemory(words=comparison.reference.words))
    for keeps in [(keep,) for keep in asked.keep] if one_size else [asked.keep]:
        folder = asked.output_dir / name
        folder = folder / f"keep-{keeps[0]:g}" if one_size else folder
        resume = (folder / "config.toml").exists()
        config = replace(
            settings, keep=keeps, output_dir=folder, resume=resume, anyway=asked.anyway
        )
        try:
            result = prune_with(caller, config, inputs)
        except InputError as error:
            rows += [failed(name, keep, error) for keep in keeps]
            continue
        for size in result.sizes:
            if size.measured is None:  # exported since then, by hand
                continue
            dense = comparison.reference.dense
            compact = load_model(size.folder, dense.device, dense.dtype)
            row = ComparisonRow(
                method=name,
                keep_asked=size.share_asked,
                perplexity=size.measured.perplexity,
                perplexity_stderr=size.measured.perplexity_stderr,
                keep=size.keep,
                block_parameters=size.block_parameters,
                parameters=size.parameters,
                flops=size.keep,
                tokens_seen=result.figures["tokens_seen"],
                seconds=result.figures.get("choosing_s"),
                speed=comparison.reference.speed(compact, comparison.progress(name)),
                scores=comparison.scores(compact, name),
            )
            rows.append(row)
    return rows


def baseline_rows(comparison: Comparison, name: str, baseline: Baseline) -> list[ComparisonRow]:
    """One row a size from a baseline; `seconds` is its preparation and that size."""
    config = comparison.config
    problem = _problem(comparison, name)
    began = time.perf_counter()
    try:
        if problem.budget.layout.has_experts:
            raise InputError(
                f"{name} does not know mixtures of experts", field="methods", hint="leave it out"
            )
        make = baseline.prepare(problem)
    except FAILURES as error:
        return [failed(name, keep, error) for keep in config.keep]
    preparing = time.perf_counter() - began
    rows: list[ComparisonRow] = []
    for keep in config.keep:
        began = time.perf_counter()
        try:
            made = make(keep)
            seconds = preparing + time.perf_counter() - began
            rows.append(_measured(comparison, baseline, keep, made, seconds))
        except FAILURES as error:
            rows.append(failed(name, keep, error))
    return rows


def _problem(comparison: Comparison, name: str) -> PruningProblem:
    """The problem that a baseline is given; its folder is not created."""
    reference, settings = comparison.reference, shared_settings(comparison.config)
    process = start_process(replace(settings.machine, device=str(reference.dense.device)))
    run = Run(comparison.config.output_dir / name)
    job = Job(settings, run, process, comparison.progress(name), command=comparison.caller.command)
    budget = Budget(reference.dense.layout)
    keeps = comparison.config.keep
    return PruningProblem(reference.dense, reference.texts.corpus, budget, keeps, 1, job)


def _measured(
    comparison: Comparison, baseline: Baseline, keep: float, made: BaselineModel, seconds: float
) -> ComparisonRow:
    """The figures of a baseline's model, which took so many seconds to make."""
    name, reference = baseline.name, comparison.reference
    progress = comparison.progress(name)
    target = PrunableModel(made.model, reference.dense.family)
    measured = reference.measuring(progress).perplexity(target, "perplexity")
    dense = reference.dense.block_parameters
    outside = target.parameters - stored_numbers(target)
    return ComparisonRow(
        method=name,
        keep_asked=keep,
        perplexity=measured.perplexity,
        perplexity_stderr=measured.perplexity_stderr,
        keep=made.stored / dense,
        block_parameters=round(made.stored),
        parameters=round(outside + made.stored),
        flops=made.multiplied / dense,
        tokens_seen=comparison.config.scores.tokens if baseline.reads_text else 0,
        seconds=round(seconds, 1),
        speed=reference.speed(made.model, progress),
        scores=comparison.scores(made.model, name),
    )
