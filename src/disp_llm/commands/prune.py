"""The main job: a model and text -> a run folder with one smaller model a size, each one proven.

Stages, each of which leaves a file and is skipped when a resumed run finds it: dense perplexity,
scores, mask learning, and for every size masks, export, and the measurement of what was exported.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from disp_llm.commands.api import (
    Caller,
    Inputs,
    Model,
    TemporaryFolder,
    inputs_of,
    job_of,
    located,
    require_valid,
    with_folder,
    with_options,
)
from disp_llm.commands.caller import of_kind
from disp_llm.commands.exporting import measured_export
from disp_llm.commands.inputs import input_files, require_same_files
from disp_llm.commands.measuring import Measuring, scoreboard_of
from disp_llm.commands.outcome import PruneResult
from disp_llm.commands.placement import as_begun, first_alone, load_original
from disp_llm.commands.planning import (
    own_needs,
    problem_of,
    refuse_impossible,
    refuse_short_text,
    require_unread,
    tokens_seen,
    tokens_wanted,
)
from disp_llm.commands.sizes import SizeWriter, keep_by_penalty, masks_of, measure_curve
from disp_llm.config.effect import usual_settings
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recipes import apply_recipe, load_recipe
from disp_llm.data.named import Sources, read_sources
from disp_llm.data.sources import GivenText
from disp_llm.data.tokens import Texts, texts_for
from disp_llm.data.written import Writer
from disp_llm.evaluation.suites import Scoreboard
from disp_llm.masks.selection import Masks, Selection
from disp_llm.masks.selection_file import load_selection, save_selection
from disp_llm.methods import method_named
from disp_llm.models.devices import dtype_name, start_tracking
from disp_llm.models.loading import Loaded
from disp_llm.models.sharding import Sharding
from disp_llm.models.source import base_and_license
from disp_llm.models.windows import within_positions
from disp_llm.reporting.page import write_run_page
from disp_llm.reporting.run_plots import draw_curve
from disp_llm.runs.files import write_json
from disp_llm.runs.folder import Run, clock
from disp_llm.runs.identity import stamped
from disp_llm.runs.job import Job
from disp_llm.runs.lock import locked
from disp_llm.runs.provenance import peak_memory_bytes
from disp_llm.runs.results import DenseResult, Perplexity, as_json
from disp_llm.runs.settings import available, begin_run
from disp_llm.training.problem import PruningProblem


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
            "self", what the model writes itself.
        config: all settings at once, which `options` change. Default: the recipe's.
        options: settings by the names of their flags (`keep=[0.8, 0.5]`, `steps=75`, `eval_text=`,
            `output_dir=`, ...), and `progress`, a callback (docs/api.md). Without an `output_dir`
            the run lies in a temporary folder.

    Raises:
        InputError: something that the caller can correct.
        Interrupted: the task was asked to stop while learning; `resume` goes on.
    """
    caller = Caller.of(options)
    name, inputs = inputs_of(model, tokenizer)
    temporary = None
    if config is None:
        temporary = with_folder(options)
        recipe = load_recipe(str(options.get("recipe", PruneConfig.recipe)))
        config = apply_recipe(PruneConfig(name), recipe)
    config = replace(of_kind(config, PruneConfig), model=name)
    inputs, config = with_options(inputs, config, {"text": text} | options)
    return prune_with(caller, config, inputs, temporary)


def prune_with(
    caller: Caller, config: PruneConfig, inputs: Inputs, temporary: TemporaryFolder | None = None
) -> PruneResult:
    """The same with all settings, and what lies in memory.

    Args:
        temporary: the run folder, where nobody has named one.

    Raises:
        InputError: something that the caller can correct.
        Interrupted: the task was asked to stop.
    """
    require_valid(config, inputs)
    config = available(located(config))  # before anything is touched
    with locked(config.output_dir, "prune"):
        return _in_its_folder(caller, available(config), inputs, temporary)


def _in_its_folder(
    caller: Caller, config: PruneConfig, inputs: Inputs, temporary: TemporaryFolder | None
) -> PruneResult:
    """Everything, in a folder that is locked and fits the settings."""
    run = Run(config.output_dir, config.anyway)
    require_same_files(config, run)
    run.forget_deleted(map(config.budget.size_name, config.sizes))
    if run.is_done:
        run.require_whole()
        inputs.require_same(run)
        if not run.page_file.exists():
            write_run_page(run)
        return PruneResult(run.folder, run.result(), config.machine.device, temporary)
    with job_of(caller, config, inputs) as job, clock(run, "seconds", job.process.is_main):
        run_stages(job, inputs)
    process = job.process
    if not process.is_main:
        return PruneResult(run.folder, {})
    figures = run.finish(*_draw(run), peak_memory_bytes=peak_memory_bytes(process.device))
    write_run_page(run)
    return PruneResult(run.folder, figures, str(process.device), temporary)


def _draw(run: Run) -> list[Path]:
    """Draws the curve, where one was measured; the files."""
    figures, files = run.result(), [run.folder / "curve.json", run.folder / "curve.png"]
    if "curve" not in figures:
        return []
    write_json(files[0], figures["curve"])
    draw_curve(figures, files[1])
    return files


def run_stages(job: Job[PruneConfig], inputs: Inputs) -> None:
    """Everything between an empty folder and a finished run, as far as it is not there."""
    asked, run, process = job.config, job.run, job.process
    files = stamped(input_files(asked)) if process.is_main else {}
    board = scoreboard_of_run(asked, run)
    job = as_begun(job)
    held, loaded = load_original(job, inputs)
    loaded = loaded.as_recorded(run.result().get("source", {}))
    with process.accelerator.main_process_first():  # which measures, where time is the budget
        problem, sources = open_problem(held, loaded, inputs)
        refuse_impossible(problem)

    def begin() -> None:
        run.require_same_source(loaded.source, dtype_name(loaded.dtype))
        _begin(job, problem, loaded)

    def written() -> tuple[PruningProblem, Texts]:
        return with_texts(problem, loaded, sources, inputs.texts.words, begin)

    problem, texts = first_alone(job, loaded, written) or written()
    refuse_short_text(problem, texts)
    run.require_same_source(loaded.source | texts.names, dtype_name(loaded.dtype))
    config = problem.job.config
    measuring = Measuring(
        texts.evaluation, config.evaluation, loaded.tokenizer, job.progress, board
    )
    if process.is_main:
        _begin(job, problem, loaded)
    process.wait()
    start_tracking(process, config.track, run.folder)
    if process.is_main and ("source" not in run.result() or config.anyway):
        base, terms = base_and_license(config.model)
        source = loaded.source | texts.names | {"base_model": base, "license": terms}
        run.update(source=source, inputs=files)

    def measure_dense() -> None:
        run.update(dense=dense_figures(problem, measuring, inputs.measured))

    first_alone(job, loaded, measure_dense)
    selection = choose(problem)

    def export() -> None:
        export_all(problem, measuring, selection, loaded.sharding)

    first_alone(job, loaded, export)
    process.accelerator.end_training()


def export_all(
    problem: PruningProblem, measuring: Measuring, selection: Selection, sharding: Sharding | None
) -> None:
    """Writes and measures everything that follows from a selection."""
    config, run = problem.job.config, problem.job.run
    steps = run.result().get("steps", config.learn.steps)
    run.update(tokens_seen=tokens_seen(config, steps, problem.job.process.count))
    if config.method == "learned" and config.learn.penalty:
        run.update(keep_by_penalty=keep_by_penalty(problem, selection))
    export = measured_export(problem, measuring, sharding)
    SizeWriter(problem, export).write(selection, config.sizes)
    if config.keep_range:
        measure_curve(problem, measuring, selection, config.curve_shares)


def _begin(job: Job[PruneConfig], problem: PruningProblem, loaded: Loaded) -> None:
    """Opens the run folder; its settings are as asked, with what was found for alignment and chunks
    where nobody asked."""
    asked = job.config
    export = replace(asked.export, align=asked.export.align or problem.align)
    begin_run(
        replace(asked, export=export, chunk=asked.chunk or problem.budget.chunk),
        job.command,
        dtype=dtype_name(loaded.dtype),
        processes=job.process.count,
    )


def scoreboard_of_run(config: PruneConfig, run: Run) -> Scoreboard | None:
    """The suite of a run, if it has one.

    Raises:
        InputError: it is unusable, or not what the original was measured on.
    """
    found = run.dense
    return scoreboard_of(config.suite, found.scores if found else None)


def open_problem(
    job: Job[PruneConfig], loaded: Loaded, inputs: Inputs
) -> tuple[PruningProblem, Sources]:
    """Reads texts, and settles budget, alignment and the length of windows: the job of the problem
    has settings that the model can follow. It has no learning text yet."""
    config = within_positions(job.config, usual_settings(job.config), loaded.model.config)
    job = replace(job, config=config)
    progress = job.count("reading text")
    progress(0, 1)
    wanted = tokens_wanted(config, job.process.count)
    sources = read_sources(config.text, inputs.texts, wanted, config.evaluation.tokens)
    progress(1, 1)
    if loaded.sharding is not None:
        require_unread(config)
    return problem_of(job, loaded), sources


def with_texts(
    problem: PruningProblem,
    loaded: Loaded,
    sources: Sources,
    words: GivenText | None = None,
    begin: Callable[[], None] = lambda: None,
) -> tuple[PruningProblem, Texts]:
    """The problem with its learning text, of which the model writes what is its own.

    Args:
        words: what it has written already, for several runs.
        begin: opens the run folder, before anything is written into it.
    """
    job, config = problem.job, problem.job.config
    needs = own_needs(config, job.process.count)
    writer = Writer.of(job, loaded, needs, config.training.length, begin, ready=words)
    texts = texts_for(loaded, config.text, sources, writer.write, config.evaluation.context)
    return replace(problem, corpus=texts.corpus), texts


def dense_figures(
    problem: PruningProblem, measuring: Measuring, measured: Perplexity | None = None
) -> dict[str, Any]:
    """Perplexity and size of the model as it came; measured once a run.

    Args:
        measured: its perplexity, where it is known already.
    """
    run, dense = problem.job.run, problem.dense
    found = run.result().get("dense")
    if found:
        return found
    if measured is None:
        with clock(run, "measuring_dense_s"):
            measured = measuring.perplexity(dense, "dense perplexity")
    with clock(run, "scoring_dense_s", measuring.board is not None):
        scores = measuring.scores(dense, "dense")
    result = DenseResult(
        measured=measured,
        prompt=measuring.prompt,
        sample=measuring.sample(dense.model),
        parameters=dense.parameters,
        block_parameters=problem.budget.dense_block_parameters,
        bytes=dense.parameters * next(dense.model.parameters()).element_size(),
        scores=scores,
    )
    return as_json(result)


def choose(problem: PruningProblem) -> Selection:
    """The selection: from the file if the run has one, else by the method."""
    job, config = problem.job, problem.job.config
    path = job.run.selection_file
    if job.run.has(path):
        return load_selection(path, problem.budget.layout)
    with clock(job.run, "choosing_s", job.process.is_main):
        selection = method_named(config.method).choose(problem).on_cpu()
    if job.process.is_main:
        save_selection(path, selection, problem.budget.layout, _masks_of_sizes(problem, selection))
        job.run.update(path, *job.run.log)
    return selection


def _masks_of_sizes(problem: PruningProblem, selection: Selection) -> dict[str, Masks]:
    """The masks of every size by its name; none where models are timed first."""
    config, budget = problem.job.config, problem.budget
    sizes = () if config.budget.budget == "latency" else config.sizes
    return {
        config.budget.size_name(size): masks_of(problem, selection, budget.share_of(size))
        for size in sizes
    }
