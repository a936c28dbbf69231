"""What `prune` and `recover` share: a locked run folder, checked against the settings and their
input files, which is resumed or, if done, answered from."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from disp_llm.commands.api import EXAMPLES, TEXTS, Call, Hashes
from disp_llm.commands.report import PruneResult, RecoverResult
from disp_llm.config.errors import InputError
from disp_llm.config.names import NAMED_TEXTS, SELF, SPEECHES, is_mixture
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recipes import flat, resolved
from disp_llm.config.schema import require_file
from disp_llm.config.texts import load_mixture, load_suite
from disp_llm.data.randomness import random_stream
from disp_llm.data.reading import files_under, naming
from disp_llm.data.sources import GivenText, Needs, Sources
from disp_llm.data.synthetic import synthetic_text
from disp_llm.data.tokens import Texts, load_tokens
from disp_llm.models import embedded
from disp_llm.models.devices import (
    dtype_name,
    release_freed_memory,
    require_tracker,
    start_process,
    start_tracking,
)
from disp_llm.models.files import files_of
from disp_llm.models.loading import Loaded
from disp_llm.reporting.page import write_page
from disp_llm.runs.folder import Run, clock, other_source
from disp_llm.runs.job import Job
from disp_llm.runs.lock import locked
from disp_llm.runs.progress import silent
from disp_llm.runs.provenance import peak_memory_bytes
from disp_llm.runs.results import SizeResult
from disp_llm.runs.settings import available, begin_run
from disp_llm.runs.sums import sha256_of

Result = TypeVar("Result", PruneResult, RecoverResult)
Done = TypeVar("Done")
Located = TypeVar("Located", bound=Any)  # settings of a task that reads text

LOCAL_NAMES = ("model", "teacher", "weights_from")
"""Settings that name a hub model or a local one."""


def run_in_folder(call: Call, stages: Callable[..., None], result: type[Result]) -> Result:
    """Runs a task in its folder, skipping what is done there.

    Args:
        stages: does everything from an empty folder to a finished run; takes the job and what lies
            in memory.
    """
    prunes, inputs = isinstance(call.config, PruneConfig), call.inputs
    inputs.require_learnable()
    config = available(located(call.config))  # before anything is touched
    with locked(config.output_dir, "prune" if prunes else "recover"):
        config = available(config)
        run = Run(config.output_dir, config.anyway)
        if not run.anyway:
            require_same_files(config, run.result().get("inputs", {}), run.folder)
        if prunes:
            run.forget_deleted(map(config.budget.size_name, config.sizes))
        if run.is_done:
            run.require_whole()
            inputs.require_same(run)
            if prunes and not run.page_file.exists():
                write_page(run)
            figures = run.located(run.result())
            return result(run.folder, figures, config.machine.device, call.temporary)
        for name in inputs.missing_of(run):
            raise other_source(name, run.folder, "it lay in memory")
        require_tracker(config.track)
        process = start_process(config.machine)
        with call.watching() as progress, inputs.frozen():
            progress = progress if process.is_main else silent
            ending = call.stop_requested, call.command
            job = Job(config, run, process, progress, *ending, asked=config)
            with clock(run, "seconds", process.is_main), _stopped_said(job):
                stages(job, inputs)
        figures = {}
        if process.is_main:
            done = run.finish(peak_memory_bytes=peak_memory_bytes(process.device))
            figures = run.located(done)
            if prunes:
                write_page(run)
        return result(run.folder, figures, str(process.device), call.temporary)


@contextlib.contextmanager
def _stopped_said(job: Job) -> Iterator[None]:
    """Records that a run was stopped and does not continue by itself."""
    try:
        yield
    except KeyboardInterrupt:
        if job.process.is_main and job.run.figures is not None:
            job.run.update(status="stopped")
        raise


def as_begun(job: Job) -> Job:
    """Returns the job with a batch that keeps the windows of a step as many as when the run began,
    whatever the number of processes was then."""
    count, training = job.process.count, job.config.training
    begun = job.run.result().get("processes", count)
    windows = training.batch * begun
    if windows % count:
        raise InputError(
            f"{begun} processes read {windows} windows a step, which {count} cannot share evenly",
            field="resume",
            hint=f"start as many as divide {windows}",
        )
    training = replace(training, batch=windows // count)
    return replace(job, config=replace(job.config, training=training))


def first_alone(
    job: Job, loaded: Loaded, work: Callable[..., Done], *arguments: Any
) -> Done | None:
    """Runs the work in the first process and returns its result; None in the others. They wait, or
    take part if processes hold the model together. All give back what earlier work has freed."""
    release_freed_memory()
    if loaded.sharding is not None:
        return loaded.sharding.lead(partial(work, *arguments))
    result = work(*arguments) if job.process.is_main else None
    job.process.wait()
    return result


def load_texts(
    job: Job, loaded: Loaded, sources: Sources, author: Loaded, needs: Needs, *noise: Any
) -> Texts:
    """Returns learning and evaluation text; a model writes the synthetic part.

    Args:
        author: the model that writes.
        noise: names the random numbers that it draws.
    """
    if sources.evaluation is not None:  # it may lie in memory, of which the settings know nothing
        needs = replace(needs, held_out=0)

    def write(share: float) -> GivenText:
        if job.process.is_main and job.run.figures is None:
            _open_folder(job, loaded)
        return synthetic_text(job, author, needs, random_stream(*noise), share)

    def tokens() -> Texts:
        names = job.config.text, loaded.tokenizer, loaded.bos_token_id
        return load_tokens(*names, sources, write, job.config.evaluation.context, loaded.rows)

    return first_alone(job, loaded, tokens) or tokens()


def begin(job: Job, loaded: Loaded, files: dict[str, Any], **source: Any) -> None:
    """Opens the run folder, and records what the run is made of.

    Args:
        files: hashes of its input files.
        source: names and hashes of the models and texts.
    """
    run, main = job.run, job.process.is_main
    run.require_same_source(source, dtype_name(loaded.dtype))
    if main:
        _open_folder(job, loaded)
    job.process.wait()
    start_tracking(job.process, job.config.track, run.folder, dict(flat(resolved(job.config))))
    if main and ("source" not in run.result() or job.config.anyway):
        run.update(source=source, inputs=files)


def end(job: Job, steps: int) -> None:
    """Hands the models' figures to the tracker, at the last step, and closes it. Deletes the
    checkpoints of the finished run."""
    if job.process.is_main:
        job.run.drop_checkpoints()
    figures = job.run.figures
    if figures is not None and job.process.is_main and job.config.track != "none":
        for model in (*figures.models, *filter(None, [figures.model])):
            numbers = {"keep": model.keep, "parameters": model.parameters, "bytes": model.bytes}
            if model.measured is not None:
                numbers["perplexity"] = model.measured.perplexity
            if model.scores is not None:
                numbers |= {"general_ratio": model.scores.general_ratio, "kept": model.scores.kept}
            if isinstance(model, SizeResult):
                numbers |= model.speed or {}
            job.process.track(Path(model.folder).name, numbers, steps)
    job.process.accelerator.end_training()


def _open_folder(job: Job, loaded: Loaded) -> None:
    facts = {"dtype": dtype_name(loaded.dtype), "processes": job.process.count}
    begin_run(job.asked or job.config, job.command, **facts)


def located(config: Located) -> Located:
    """Returns the settings with absolute paths of local models and texts, so that a run can resume
    from any folder."""
    names: dict[str, Any] = {}
    for name in LOCAL_NAMES:
        value = getattr(config, name, "")
        if value != embedded.MODEL and value and Path(value).exists():
            names[name] = os.path.abspath(value)
    texts: dict[str, Any] = {
        name: tuple(
            path if str(path) in NAMED_TEXTS else path.absolute()
            for path in getattr(config.text, name)
        )
        for name in (*TEXTS, *EXAMPLES)
    }
    suite = getattr(config, "suite", "")
    if suite.endswith(".toml"):
        names["suite"] = os.path.abspath(suite)
    config = replace(config, **names, text=replace(config.text, **texts))
    if isinstance(config, PruneConfig):
        words = tuple(path.absolute() for path in config.vocabulary.keep_tokens)
        config = replace(config, vocabulary=replace(config.vocabulary, keep_tokens=words))
    return config


def input_hashes(config: Any) -> Hashes:
    """Returns hashes of the input files as they are now; hub models and data sets have none."""
    return {name: _hashed(files, name) for name, files in _input_files(config).items()}


def require_same_files(config: Any, before: Hashes, folder: Path) -> None:
    """Refuses a folder that was made of other files than the settings name now. A setting whose
    files are all gone does not count as changed."""
    files = _input_files(config)
    for setting, had in before.items():
        now = _hashed(files.get(setting, []), setting)
        changed = sorted(name for name in now | had if now.get(name) != had.get(name))
        if now and changed:
            raise other_source(setting, folder, f"{Path(changed[0]).name} has changed")


def _hashed(paths: list[Path], setting: str) -> dict[str, str]:
    path = Path()
    try:
        for path in paths:
            require_file(path)  # hashing a pipe would wait for ever
        return {str(path): digest for path, digest in sha256_of(paths).items()}
    except OSError as error:
        raise InputError(
            f"{error.filename or path}: {error.strerror}",
            field=setting,
            hint="name a readable file",
        ) from error


def _input_files(config: Any) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for name in LOCAL_NAMES:
        value = getattr(config, name, "")
        path = embedded.path_of(value)
        found[name] = files_of(path) if value else []
    for name in (*TEXTS, *EXAMPLES):
        paths = getattr(config.text, name)
        found[name] = [file for path in paths for file in _files_of_text(path, name)]
    if isinstance(config, PruneConfig):
        found["keep_tokens"] = [*config.vocabulary.keep_tokens]
    suite = getattr(config, "suite", "")
    if suite.endswith(".toml"):
        found["suite"] = [Path(suite), *_files_of_suite(suite)]
    return {name: files for name, files in found.items() if files}


def _files_of_text(path: Path, field: str) -> Iterator[Path]:
    """Yields a file of text, those of a folder, or a mixture with those that it names."""
    named = str(path) in (SELF, SPEECHES) and not path.exists()
    if named:
        yield from embedded.speech_files()[0] if str(path) == SPEECHES else ()
    elif is_mixture(path):
        if path.is_file():  # a mixture of our package changes with its version
            yield path
        for text in load_mixture(path).texts.values():
            for file in text.files:
                yield from _files_of_text(file, field)
    else:
        with naming(path, field):
            yield from files_under(path)


def _files_of_suite(name: str) -> Iterator[Path]:
    suite = load_suite(name)
    for file in (file for text in suite.texts.values() for file in text.files):
        yield from _files_of_text(file, "suite")
    yield from (task.data for task in suite.tasks.values() if task.data is not None)
