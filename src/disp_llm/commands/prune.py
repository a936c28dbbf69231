"""The main job: a model and text -> a run folder with one smaller model per size, each one checked.

Stages: perplexity of the original, scores, mask learning, and for every size masks, export, and
measurement of the exported model. Each stage records its result; a resumed run skips what is
recorded.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch

from disp_llm.commands.api import Call, Inputs, Model, called_with, takes
from disp_llm.commands.budgets import require_room, require_smaller
from disp_llm.commands.engines import require_engine
from disp_llm.commands.fitting import HeldOut, fitted, settle
from disp_llm.commands.planning import (
    load_original,
    own_needs,
    problem_of,
    tokens_seen,
    tokens_wanted,
    windows_of,
)
from disp_llm.commands.report import PruneResult
from disp_llm.commands.session import (
    as_begun,
    begin,
    end,
    first_alone,
    input_hashes,
    load_texts,
    run_in_folder,
)
from disp_llm.commands.sizes import SizeWriter, keep_by_penalty
from disp_llm.commands.vocabulary import with_fewer_tokens
from disp_llm.config.errors import InputError
from disp_llm.config.parts import BudgetConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.data.sources import read_sources
from disp_llm.data.spelling import Spelling
from disp_llm.data.tokens import Texts
from disp_llm.evaluation.measuring import Measuring, scoreboard_of
from disp_llm.evaluation.suites import Scoreboard
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks, Selection
from disp_llm.masks.selection_file import load_selection, load_vocabulary, save_selection
from disp_llm.methods import method_named
from disp_llm.models.architectures import package_of
from disp_llm.models.loading import Loaded
from disp_llm.models.source import base_and_license
from disp_llm.models.windows import require_pieces, require_positions, within_positions
from disp_llm.runs.folder import clock
from disp_llm.runs.job import Job
from disp_llm.runs.results import Fit, OriginalResult
from disp_llm.runs.scores import Perplexity
from disp_llm.training.pace import seconds_late
from disp_llm.training.problem import PruningProblem

logger = logging.getLogger(__name__)


@takes(PruneConfig)
def prune(
    model: Model | None = None,
    tokenizer: Any = None,
    *,
    text: Any = None,
    config: PruneConfig | None = None,
    **options: Any,
) -> PruneResult:
    """Makes smaller models of one model, and measures what they lost.

    Args:
        model: a hub id, a folder, a GGUF file, `smollm2-135m`, or a model in memory, which is left
            as it was.
        tokenizer: of a model in memory.
        text: what to learn from: paths, strings, a `datasets.Dataset` or token ids. Default:
            "self", text that the model writes itself.
        config: all settings at once; `options` override them. Default: the recipe's.
        options: settings by the names of their flags (`keep=[0.8, 0.5]`, `steps=75`, `eval_text=`,
            `output_dir=`, ...), and `progress`, a callback (docs/api.md). Without `output_dir` and
            `config` the run lies in a temporary folder.

    Raises:
        InputError: something that the caller can correct.
        Interrupted: the task was asked to stop while learning; `resume` continues it.
    """
    options["text"] = text
    return prune_with(called_with(PruneConfig, {"model": model}, tokenizer, config, options))


def prune_with(call: Call[PruneConfig]) -> PruneResult:
    """Runs `prune` on a prepared call."""
    return run_in_folder(call, run_stages, PruneResult)


def run_stages(job: Job[PruneConfig], inputs: Inputs) -> None:
    """Runs the stages from an empty folder to a finished run, skipping those already done."""
    files = input_hashes(job.config) | inputs.hashes if job.process.is_main else {}
    original = job.run.original
    board = scoreboard_of(job.config.suite, original.scores if original else None)
    opened = open_problem(as_begun(job), inputs)
    problem, loaded = opened.problem, opened.loaded
    job, measuring = problem.job, opened.measuring(board)
    measuring.require_suite(problem.dense)
    base, terms = base_and_license(job.config.model) if job.process.is_main else ("", "")
    source = loaded.source | opened.texts.names | {"base_model": base, "license": terms}
    if (package := package_of(loaded.model.config)) != "transformers":
        source["package"] = package
    begin(job, loaded, files, **source)
    if opened.fit is not None and job.process.is_main and job.run.result().get("fit") is None:
        job.run.update(fit=opened.fit)
    first_alone(job, loaded, measure_original, opened, board, inputs.measured)
    selection = choose(problem)
    first_alone(job, loaded, export_all, opened, measuring, selection)
    if opened.fit is not None and job.process.is_main:
        settle(opened, opened.fit)
    if job.process.is_main:
        _say_if_late(job)
    end(job, job.run.result().get("steps", job.config.learn.steps))


def _say_if_late(job: Job[PruneConfig]) -> None:
    """Warns, and records it, if a run took longer than `minutes`."""
    minutes = job.config.learn.minutes
    if not minutes:
        return
    late = seconds_late(job)
    if late > 0:
        job.run.update(late_s=round(late, 1))
        logger.warning(
            "took %.1f minutes, and `minutes` is %g; fewer sizes, `rounds` 0 or a shorter "
            "`eval_text` take less",
            minutes + late / 60,
            minutes,
        )


@dataclass(frozen=True)
class Opened:
    """The model, the texts and the problem of a run."""

    problem: PruningProblem
    loaded: Loaded
    """Model that is pruned: the original, or the original with fewer tokens."""
    original: Loaded
    texts: Texts
    """Texts in the original's tokens."""
    spelling: Spelling | None
    """How the model's tokens spell the original's; None if it keeps them all."""
    fit: Fit | None = None
    """How the asked size is met; None unless the run decides tokens and bits."""

    def measuring(self, board: Scoreboard | None) -> Measuring:
        """Returns the text and the suite that models are measured on."""
        found = Measuring.of(self.problem.job, self.texts, self.original.tokenizer, board)
        return replace(found, spelling=self.spelling)

    def writer(self, measuring: Measuring) -> SizeWriter:
        """Returns the writer that exports and measures sizes."""
        return SizeWriter(self.problem, self.loaded, measuring, self.original)


def open_problem(job: Job[PruneConfig], inputs: Inputs) -> Opened:
    """Reads texts and model, and settles budget, alignment and window lengths: the problem's job
    has settings that the model can follow. Refuses what is already known to be impossible before
    the model writes its own text and before the run folder exists."""
    config, progress = job.config, job.count("reading text")
    progress(0, 1)
    wanted = tokens_wanted(config, job.process.count)
    sources = read_sources(config.text, inputs.texts, wanted, config.evaluation.tokens)
    progress(1, 1)
    job, loaded = load_original(job, inputs)
    fewer = has_fewer_tokens(job)
    config = within_positions(job.config, loaded.model.config, fewer_tokens=fewer)
    job = replace(job, config=config)
    with job.process.accelerator.main_process_first():  # a latency budget measures here
        counted = replace(config, budget=BudgetConfig()) if config.budget.decides else config
        problem = problem_of(replace(job, config=counted), loaded)
    require_smaller(problem)
    if not fewer:
        require_room(problem)
    require_engine(problem, loaded)
    for field, tokens in windows_of(config).items():
        require_positions(loaded.model, tokens, field)
    asked = job.asked or job.config  # open settings are stored as they were settled
    align, chunk = asked.align or problem.align, asked.chunk or problem.budget.chunk
    job = replace(job, asked=replace(asked, align=align, chunk=chunk))
    needs, noise = own_needs(config, job.process.count), ("words", config.machine.seed)
    texts = load_texts(job, loaded, sources, loaded, needs, *noise)
    require_positions(loaded.model, texts.longest_window(config.evaluation), "context")
    held = HeldOut.of(texts.corpus, loaded) if config.budget.decides else None
    corpus = texts.corpus if held is None else held.before
    for field, tokens in windows_of(config).items():
        corpus.require_length(tokens, field)
    problem, fit = replace(problem, job=job, corpus=corpus), None
    if held is not None:
        job, fit = fitted(problem, loaded, held)
        problem, fewer = replace(problem_of(job, loaded), corpus=corpus), fit.vocabulary > 0
    if not fewer:
        require_room(problem)
        return Opened(problem, loaded, loaded, texts, None, fit)
    problem, small, spelling = with_fewer_tokens(problem, loaded)
    require_room(problem)
    require_pieces(loaded.model, spelling.longest_window(texts.evaluation, config.evaluation))
    return Opened(problem, small, loaded, texts, spelling, fit)


def has_fewer_tokens(job: Job[PruneConfig]) -> bool:
    """Returns whether tokens are to be cut, or were cut when the run chose."""
    if job.config.cuts_tokens:
        return True
    path = job.run.selection_file
    return job.run.has(path) and bool(load_vocabulary(path))


def export_all(opened: Opened, measuring: Measuring, selection: Selection) -> None:
    """Writes and measures every size of a selection; records the tokens that choosing read."""
    problem = opened.problem
    config, run = problem.job.config, problem.job.run
    steps = run.result().get("steps", config.learn.steps)
    seen = tokens_seen(config, steps, problem.job.process.count) if learns(problem) else 0
    run.update(tokens_seen=seen)
    if config.draws_masks:
        run.update(keep_by_penalty=keep_by_penalty(problem, selection))
    opened.writer(measuring).write(selection, config.sizes)


def measure_original(opened: Opened, board: Scoreboard | None, measured: Perplexity | None) -> None:
    """Measures perplexity, scores and size of the original, once a run; takes its perplexity as
    `measured` where it is known."""
    problem, run = opened.problem, opened.problem.job.run
    if "original" in run.result():
        return
    measuring = opened.measuring(board).of_original
    dense = problem.dense if opened.spelling is None else PrunableModel.of(opened.original)
    if measured is None:
        with clock(run, "measuring_original_s"):
            measured = measuring.perplexity(dense, "perplexity of the original")
    with clock(run, "scoring_original_s", measuring.board is not None):
        scores = measuring.scores(dense, "original")
    result = OriginalResult(
        measured=measured,
        prompt=measuring.prompt,
        sample=measuring.sample(dense.model),
        parameters=dense.parameters,
        block_parameters=problem.budget.dense_block_parameters,
        bytes=dense.parameters * next(dense.model.parameters()).element_size(),
        scores=scores,
    )
    run.update(original=result)


def _checked(found: Any, problem: PruningProblem) -> Selection:
    """Checks what a method, maybe another package's, has chosen; returns it on the CPU."""
    method, layout = problem.job.config.method, problem.budget.layout
    if not isinstance(found, Selection):
        raise _wrong(f"{method} gave {type(found).__name__}, not a Selection")
    means = sum(block.q + block.intermediate for block in layout.blocks)
    for name, given, count in (
        ("importance", found.importance, layout.entries),
        ("scales", found.compensation.scales, layout.entries),
        ("mean_inputs", found.compensation.mean_inputs, means),
    ):
        if given is None and name != "importance":
            continue
        if not isinstance(given, torch.Tensor) or given.shape != (count,):
            got = tuple(getattr(given, "shape", ()))
            raise _wrong(f"{method} gave {name} of {got}, not ({count},)")
        if not given.isfinite().all():
            raise _wrong(f"{method} gave {name} that are not all finite")
    return found.on_cpu()


def _wrong(what: str) -> InputError:
    return InputError(what, field="method", hint="correct it (docs/extend.md)")


def learns(problem: PruningProblem) -> bool:
    """Returns whether anything is to be cut; if not, the model is the original."""
    return min(problem.keeps) < 1 or bool(problem.vocabulary)


def choose(problem: PruningProblem) -> Selection:
    """Returns the selection: from the file if the run has one, else by the method."""
    job, config = problem.job, problem.job.config
    path = job.run.selection_file
    if job.run.has(path):
        return load_selection(path, problem.budget.layout)
    with clock(job.run, "choosing_s", job.process.is_main):
        if learns(problem):
            selection = _checked(method_named(config.method).choose(problem), problem)
        else:
            selection = Selection(torch.zeros(problem.budget.layout.entries))
        selection = replace(selection, vocabulary=problem.vocabulary)
    if job.process.is_main:
        masks: dict[str, Masks] = {}
        if config.budget.kind != "latency":  # a latency budget makes masks only as models are timed
            for size in config.sizes:
                share = problem.budget.share_of(size)
                masks[config.budget.size_name(size)] = problem.masks(selection, share)
        save_selection(path, selection, problem.budget.layout, masks)
        job.run.update(path, *job.run.log)
    return selection
