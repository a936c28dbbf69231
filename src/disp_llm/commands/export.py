"""Exports other sizes of a run that has learned, without learning again."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from disp_llm.commands.api import Inputs, called, takes
from disp_llm.commands.budgets import require_room, require_smaller
from disp_llm.commands.planning import problem_of, require_possible, sites_of
from disp_llm.commands.prune import open_problem
from disp_llm.commands.report import PruneResult
from disp_llm.commands.sizes import SizeWriter
from disp_llm.commands.vocabulary import trimmed_to
from disp_llm.config.commands import ExportConfig
from disp_llm.config.errors import InputError
from disp_llm.config.prune import PruneConfig
from disp_llm.evaluation.measuring import scoreboard_of
from disp_llm.masks.selection_file import load_selection, load_vocabulary
from disp_llm.models.architectures import family_of
from disp_llm.models.checkpoint import load_unread
from disp_llm.models.devices import dtype_name, start_process
from disp_llm.models.loading import load, load_config
from disp_llm.models.source import IN_MEMORY
from disp_llm.reporting.page import write_page
from disp_llm.runs.folder import Run
from disp_llm.runs.job import Job
from disp_llm.runs.lock import locked
from disp_llm.runs.provenance import peak_memory_bytes
from disp_llm.runs.settings import stored_config


@takes(ExportConfig)
def export(run: ExportConfig | str | Path | None = None, **options: Any) -> PruneResult:
    """Writes sizes from a run's stored selection, without choosing again; under another budget than
    it learned under, if that is asked for."""
    call = called(ExportConfig, run, options)
    config, began = call.config, time.perf_counter()
    stored = stored_config(config.run)
    _require_inputs(stored, config.no_measure)
    settled = (*stored.sizes, *config.sizes)
    require_possible(replace(stored, budget=config.budget), tuple(dict.fromkeys(settled)))
    with locked(config.run, "prune", "run"), call.watching() as progress:
        made = Run(config.run, config.anyway)
        if not made.has(made.config_file) or not made.has(made.selection_file):
            raise InputError(
                "this run has not finished learning",
                field=str(made.folder),
                hint=f"run `disp-llm prune MODEL --output-dir {made.folder} --resume` first",
            )
        for name in () if config.no_measure else Inputs().missing_of(made):
            raise InputError(
                "lay in memory when the run was made, and sizes are measured with it",
                field=name,
                hint="add `no_measure`, or make the run from a file of it",
            )
        made.forget_deleted(map(stored.budget.size_name, stored.sizes))
        process = start_process(replace(stored.machine, device=config.device))
        settings = _of_this_size(config, stored)
        job = Job(settings, made, process, progress, call.stop_requested, call.command)
        writer = _unmeasured(job) if config.no_measure else _measured(job)
        selection = load_selection(made.selection_file, writer.problem.budget.layout)
        writer.write(selection, config.sizes)
        result = made.located(made.result())
        by_name = {entry["size"]: entry for entry in result["models"]}
        figures = {name: value for name, value in result.items() if name != "fit"} | {
            "models": [by_name[config.budget.size_name(size)] for size in config.sizes],
            "seconds": round(time.perf_counter() - began, 1),
            "peak_memory_bytes": peak_memory_bytes(process.device),
        }
        write_page(made)
    return PruneResult(made.folder, figures, str(process.device))


def _require_inputs(stored: PruneConfig, no_measure: bool) -> None:
    """Refuses a run whose model, or text to measure on, is no longer where the run found it: this
    command has no setting that names another place."""
    text = stored.text
    texts = (*text.text, *text.eval_text, *text.examples, *text.eval_examples)
    for path in (Path(stored.model), *(() if no_measure else texts)):
        if path.is_absolute() and not path.exists():
            hint = "put it back" + ("" if path == Path(stored.model) else ", or add `no_measure`")
            raise InputError(f"{path}, which it was made of, is gone", field="run", hint=hint)


def _measured(job: Job[PruneConfig]) -> SizeWriter:
    """Returns a writer that measures, with the run's model and evaluation text in memory."""
    original = job.run.original
    board = scoreboard_of(job.config.suite, original.scores if original else None)
    opened = open_problem(job, Inputs())
    source = opened.loaded.source | opened.texts.names
    job.run.require_same_source(source, dtype_name(opened.loaded.dtype))
    return opened.writer(opened.measuring(board))


def _unmeasured(job: Job[PruneConfig]) -> SizeWriter:
    """Returns a writer that exports from file to file and runs nothing."""
    config = job.config
    machine = replace(config.machine, device=str(job.process.device))
    progress = job.count("loading model")
    progress(0, 1)
    source = job.run.result()["source"]
    kept = load_vocabulary(job.run.selection_file)
    # A model that lay in memory is identified by a hash of all its tensors.
    if kept or source["revision"].startswith(IN_MEMORY):
        loaded = load(config.model, machine, dense_only=True).as_recorded(source)
    else:
        loaded, _ = load_unread(config.model, machine)
    progress(1, 1)
    job.run.require_same_source(loaded.source, dtype_name(loaded.dtype))
    problem = problem_of(job, loaded)
    require_smaller(problem)
    if kept:
        problem, loaded = trimmed_to(problem, loaded, kept)
    require_room(problem)
    return SizeWriter(problem, loaded)


def _of_this_size(config: ExportConfig, stored: PruneConfig) -> PruneConfig:
    """Returns the run's settings with those of the new sizes in place of its own. The sites stay
    those of the run's own budget."""
    return replace(
        stored,
        keep=config.keep or stored.keep,
        training=replace(stored.training, shard="no", gradient_checkpointing="yes"),
        sites=sites_of(stored, family_of(load_config(stored.model))),
        output_dir=config.run,
        budget=replace(config.budget, budget=config.budget.kind),  # tokens and bits are settled
        machine=replace(stored.machine, device=config.device),
    )
