"""Makes the rows of each method of a comparison: by runs of `prune`, by a baseline, or from the
original itself."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from disp_lab.baselines import ALL
from disp_lab.comparison.baseline_context import BaselineContext, shared_settings, with_steps
from disp_lab.comparison.quantised import quantised
from disp_lab.comparison.table_rows import RowKey
from disp_lab.names import ORIGINAL, mask_methods
from disp_lab.parts.baseline import Baseline, BaselineModel, Maker, stored_numbers
from disp_lab.results import ComparisonRow, OriginalResult
from disp_lab.settings import CompareConfig
from disp_lab.variants import ONE_SIZE, VARIANTS
from disp_llm.commands.api import Call, Inputs
from disp_llm.commands.prune import prune_with
from disp_llm.commands.report import PruneResult
from disp_llm.config.checks import check_settings, with_used
from disp_llm.config.errors import InputError
from disp_llm.config.names import WeightKind
from disp_llm.config.prune import PruneConfig
from disp_llm.evaluation.suites import against
from disp_llm.masks.budget import Budget
from disp_llm.masks.prunable import PrunableModel
from disp_llm.methods import method_named
from disp_llm.models.devices import start_process
from disp_llm.models.loading import load_model
from disp_llm.runs.folder import Run
from disp_llm.runs.job import Job
from disp_llm.runs.progress import ProgressCallback
from disp_llm.runs.results import SizeResult
from disp_llm.runs.scores import Perplexity, Scores
from disp_llm.training.problem import PruningProblem

FAILURES = (InputError, RuntimeError)
"""Errors that a row reports while other methods go on: a method's refusal, or torch's, such as no
memory or no kernel."""


@dataclass(frozen=True)
class Comparison:
    """What all rows of one comparison share."""

    config: CompareConfig
    context: BaselineContext
    call: Call[CompareConfig]
    original: OriginalResult | None = None
    """The original's results; None before they are measured."""

    def progress(self, method: str) -> ProgressCallback:
        """Returns a callback that reports the stages of one method under its name."""

        def of_method(stage: str, done: int, total: int, figures: dict) -> None:
            assert self.call.progress is not None
            self.call.progress(f"{method}: {stage}", done, total, figures)

        return of_method

    def scores(self, model: PreTrainedModel, method: str) -> Scores | None:
        """Returns a model's scores on the suite, against the original's; None without a suite. Runs
        of `prune` do not measure it: each would measure the original too."""
        target = PrunableModel(model, self.context.dense.family)
        measuring = self.context.measuring(self.progress(method))
        return measuring.scores(target, "suite", self.original.scores if self.original else None)


RowMaker = Callable[[Comparison, str, list[RowKey]], Iterator[ComparisonRow]]
"""Makes these rows of a method, one after the other."""


def row_makers(comparison: Comparison) -> dict[str, RowMaker]:
    """Returns what makes the rows of each method, in table order."""
    common = shared_settings(comparison.config)
    makers: dict[str, RowMaker] = {ORIGINAL: original_rows} if comparison.config.frontier else {}
    for name in mask_methods():
        config = replace(common, method=name)
        makers[name] = partial(pruned_rows, settings=config, one_size=method_named(name).one_size)
    for name, changed in VARIANTS.items():
        config = with_steps(changed(common), comparison.config)
        makers[name] = partial(pruned_rows, settings=config, one_size=name in ONE_SIZE)
    for name, baseline in ALL.items():
        makers[name] = partial(baseline_rows, baseline=baseline)
    return makers


def failed(name: str, key: RowKey, error: Exception) -> ComparisonRow:
    """Returns a row that says in one line why it has no figures."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ComparisonRow(name, **key.fields, error=said)


def original_rows(
    comparison: Comparison, name: str, missing: list[RowKey]
) -> Iterator[ComparisonRow]:
    """Yields rows of the original: as it is, timed against itself, and quantised."""
    original, dense = comparison.original, comparison.context.dense
    assert original is not None
    scores = original.scores and against(original.scores, original.scores)
    whole = ComparisonRow(
        method=name,
        keep_asked=1.0,
        **_perplexity(original.measured),
        keep=1.0,
        block_parameters=original.block_parameters,
        parameters=original.parameters,
        flops=1.0,
        tokens_seen=0,
        scores=scores,
    )
    for key in missing:
        if key.weights:
            yield _quantised(comparison, dense, whole, key)
        else:
            yield replace(whole, **comparison.context.costs(dense.model, comparison.progress(name)))


def _perplexity(measured: Perplexity) -> dict[str, Any]:
    """Returns a perplexity and its window losses as fields of a row."""
    return {
        "perplexity": measured.perplexity,
        "perplexity_stderr": measured.perplexity_stderr,
        "window_losses": measured.window_losses,
        "window_tokens": measured.window_tokens,
    }


def pruned_rows(
    comparison: Comparison,
    name: str,
    missing: list[RowKey],
    settings: PruneConfig,
    one_size: bool,
) -> Iterator[ComparisonRow]:
    """Yields rows of one run of `prune` for all sizes or, if `one_size`, of one run per size.
    `seconds` is the time to choose masks."""
    asked = comparison.config
    assert comparison.original is not None
    inputs = Inputs(measured=comparison.original.measured)
    call: Call[Any] = replace(comparison.call, inputs=inputs, progress=comparison.progress(name))
    in_time = settings.budget.kind == "latency"
    shares = asked.fit if in_time else asked.keep
    for group in [(share,) for share in shares] if one_size else [shares]:
        keys = [key for key in missing if key.share in group]
        if not keys:
            continue
        folder = asked.output_dir / name
        folder = folder / f"keep-{group[0]:g}" if one_size else folder
        resume = (folder / "config.toml").exists()
        config = replace(settings, output_dir=folder, resume=resume, anyway=asked.anyway)
        if in_time:
            tokens = comparison.context.timed_tokens
            budget = replace(config.budget, fit=group, workload_length=tokens)
            config = replace(config, budget=budget)
        else:
            config = replace(config, keep=group)
        try:
            config = with_used(config)
            check_settings(config)
            result = prune_with(replace(call, config=config))
        except FAILURES as error:
            yield from (failed(name, key, error) for key in keys)
            continue
        for size in result.sizes:
            if size.measured is None:  # exported since then, by hand
                continue
            of_size = [key for key in keys if key.share == size.share_asked]
            yield from _of_size(comparison, name, size, result, of_size)


def _of_size(
    comparison: Comparison,
    name: str,
    size: SizeResult,
    result: PruneResult,
    keys: list[RowKey],
) -> Iterator[ComparisonRow]:
    """Yields the rows of one exported model: as it is, and quantised."""
    if not keys:
        return
    dense = comparison.context.dense
    assert size.measured is not None
    figures = result.figures
    folder = Run(result.folder).size_folder(size.size)
    compact = load_model(str(folder), dense.device, dense.dtype)
    target = PrunableModel(compact, dense.family)
    row = ComparisonRow(
        method=name,
        keep_asked=keys[0].keep,
        target=keys[0].target,
        **_perplexity(size.measured),
        keep=size.keep,
        block_parameters=size.block_parameters,
        parameters=size.parameters,
        flops=target.block_parameters_of(1) / dense.block_parameters_of(1),
        tokens_seen=figures["tokens_seen"],
        seconds=figures.get("choosing_s"),
    )
    for key in keys:
        if key.weights:
            yield _quantised(comparison, target, row, key)
        else:
            costs = comparison.context.costs(compact, comparison.progress(name))
            yield replace(row, **costs, scores=comparison.scores(compact, name))


def _quantised(
    comparison: Comparison, target: PrunableModel, row: ComparisonRow, key: RowKey
) -> ComparisonRow:
    """Returns the row of the same model with quantised weights, or one that says why it failed."""
    kind: WeightKind = key.weights
    name, context = f"{row.method}, {kind}", comparison.context
    progress = comparison.progress(name)
    try:
        made, left_out = quantised(target, kind)
        measured = context.measuring(progress).perplexity(made, "perplexity")
        return replace(
            row,
            weights=kind,
            **_perplexity(measured),
            note=f"{left_out} layers stay as they are" if left_out else "",
            scores=comparison.scores(made.model, name),
            **context.costs(made.model, progress),
        )
    except FAILURES as error:
        return failed(row.method, key, error)


def baseline_rows(
    comparison: Comparison, name: str, missing: list[RowKey], baseline: Baseline
) -> Iterator[ComparisonRow]:
    """Yields a baseline's row for each size; `seconds` covers its preparation and that size."""
    problem = _problem(comparison, name)
    began = time.perf_counter()
    try:
        if problem.budget.layout.has_experts:
            raise InputError(
                f"{name} does not know mixtures of experts", field="methods", hint="leave it out"
            )
        make = baseline.prepare(problem)
    except FAILURES as error:
        yield from (failed(name, key, error) for key in missing)
        return
    preparing = time.perf_counter() - began
    for key in missing:
        yield _row_of(comparison, baseline, make, key, preparing)


def _row_of(
    comparison: Comparison, baseline: Baseline, make: Maker, key: RowKey, preparing: float
) -> ComparisonRow:
    """Makes and measures one size; its model is freed before the next is made."""
    began = time.perf_counter()
    try:
        made = make(key.share)
        seconds = preparing + time.perf_counter() - began
        return _measured(comparison, baseline, key.share, made, seconds)
    except FAILURES as error:
        return failed(baseline.name, key, error)


def _problem(comparison: Comparison, name: str) -> PruningProblem:
    """Returns the problem for a baseline; its folder is not created."""
    context, settings = comparison.context, shared_settings(comparison.config)
    process = start_process(replace(settings.machine, device=str(context.dense.device)))
    run = Run(comparison.config.output_dir / name)
    job = Job(settings, run, process, comparison.progress(name), command=comparison.call.command)
    budget = Budget(context.dense.layout)
    keeps = comparison.config.keep
    return PruningProblem(context.dense, context.texts.corpus, budget, keeps, 1, job)


def _measured(
    comparison: Comparison, baseline: Baseline, keep: float, made: BaselineModel, seconds: float
) -> ComparisonRow:
    """Measures a baseline's model and returns its row. A model that takes the original's time and
    memory is not timed."""
    name, context = baseline.name, comparison.context
    progress = comparison.progress(name)
    target = PrunableModel(made.model, context.dense.family)
    measured = context.measuring(progress).perplexity(target, "perplexity")
    dense = context.dense.block_parameters
    outside = target.parameters - stored_numbers(target)
    costs = {} if baseline.not_smaller else context.costs(made.model, progress)
    return ComparisonRow(
        method=name,
        keep_asked=keep,
        **_perplexity(measured),
        keep=made.stored / dense,
        block_parameters=round(made.stored),
        parameters=round(outside + made.stored),
        flops=made.multiplied / dense,
        tokens_seen=comparison.config.scores.tokens if baseline.reads_text else 0,
        seconds=round(seconds, 1),
        scores=comparison.scores(made.model, name),
        note=baseline.not_smaller,
        **costs,
    )
