"""What `prune` and `recover` have in common: a run folder that is locked, fits the settings, and is
gone on with or answered from."""

import contextlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from disp_llm.commands.api import EXAMPLES, LOCAL_NAMES, TEXTS, Inputs
from disp_llm.commands.caller import Caller
from disp_llm.commands.inputs import require_same_files
from disp_llm.commands.placement import first_alone
from disp_llm.config.names import NAMED_TEXTS
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recover import RecoverConfig
from disp_llm.data.given import GivenText
from disp_llm.data.randomness import random_stream
from disp_llm.data.sources import Needs, Sources
from disp_llm.data.tokens import Texts, load_tokens
from disp_llm.models.devices import dtype_name, require_tracker, start_process, start_tracking
from disp_llm.models.embedded import MODEL
from disp_llm.models.loading import Loaded
from disp_llm.reporting.page import write_page
from disp_llm.runs.folder import Run, clock
from disp_llm.runs.job import Job
from disp_llm.runs.lock import locked
from disp_llm.runs.progress import silent
from disp_llm.runs.provenance import peak_memory_bytes
from disp_llm.runs.settings import available, begin_run

Settings = TypeVar("Settings", bound=PruneConfig | RecoverConfig)
Located = TypeVar("Located", bound=Any)  # settings of a task that reads text


def run_in_folder(
    caller: Caller, config: Settings, inputs: tuple[Inputs, ...], stages: Callable[..., None]
) -> tuple[Run, dict[str, Any], str]:
    """Does a task in its folder, as far as it is not done there.

    Args:
        inputs: what lies in memory, of every model of the task.
        stages: does everything between an empty folder and a finished run; takes the job and the
            inputs.

    Returns:
        The run, its figures (none in processes other than the first), and the device.
    """
    prunes = isinstance(config, PruneConfig)
    config = available(located(config))  # before anything is touched
    with locked(config.output_dir, "prune" if prunes else "recover"):
        config = available(config)
        run = Run(config.output_dir, config.anyway)
        if not run.anyway:
            require_same_files(config, run.result().get("inputs", {}), run.folder)
        if isinstance(config, PruneConfig):
            run.forget_deleted(map(config.budget.size_name, config.sizes))
        if run.is_done:
            run.require_whole()
            for part, revision in zip(inputs, ("revision", "teacher_revision"), strict=False):
                part.require_same(run, revision)
            if prunes and not run.page_file.exists():
                write_page(run)
            return run, run.result(), config.machine.device
        with job_of(caller, config, *inputs) as job, clock(run, "seconds", job.process.is_main):
            stages(job, *inputs)
        device, figures = job.process.device, {}
        if job.process.is_main:
            figures = run.finish(peak_memory_bytes=peak_memory_bytes(device))
            if prunes:
                write_page(run)
        return run, figures, str(device)


def load_texts(
    job: Job,
    loaded: Loaded,
    sources: Sources,
    stored: Any,
    author: Loaded,
    needs: Needs,
    *noise: Any,
) -> Texts:
    """Learning and evaluation text, of which a model writes what is its own.

    Args:
        stored: settings of the run folder, which is opened before anything is written.
        author: the model that writes.
        noise: names the random numbers that it draws.
    """

    def write(share: float) -> GivenText:
        from disp_llm.data.synthetic import synthetic_text

        if job.process.is_main and job.run.figures is None:
            _open_folder(job, loaded, stored)
        return synthetic_text(job, author, needs, random_stream(*noise), share)

    def tokens() -> Texts:
        names = job.config.text, loaded.tokenizer, loaded.bos_token_id
        return load_tokens(*names, sources, write, job.config.evaluation.context)

    return first_alone(job, loaded, tokens) or tokens()


def begin(job: Job, loaded: Loaded, stored: Any, files: dict[str, Any], **source: Any) -> None:
    """Opens the run folder, and records what the run is made of.

    Args:
        stored: its settings.
        files: hashes of what it reads.
        source: names and hashes of the models and texts.
    """
    run, main = job.run, job.process.is_main
    run.require_same_source(source, dtype_name(loaded.dtype))
    if main:
        _open_folder(job, loaded, stored)
    job.process.wait()
    start_tracking(job.process, job.config.track, run.folder)
    if main and ("source" not in run.result() or job.config.anyway):
        run.update(source=source, inputs=files)


def _open_folder(job: Job, loaded: Loaded, stored: Any) -> None:
    facts = {"dtype": dtype_name(loaded.dtype), "processes": job.process.count}
    begin_run(stored, job.command, **facts)


def located(config: Located) -> Located:
    """The same settings with local models and texts by their absolute paths, so that a run can go
    on from any folder."""
    names: dict[str, Any] = {}
    for name in LOCAL_NAMES:
        value = getattr(config, name, "")
        if value != MODEL and value and Path(value).exists():
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
    return replace(config, **names, text=replace(config.text, **texts))


class TemporaryFolder:
    """A folder that is deleted with the object that stands for it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="disp-llm-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def with_folder(options: dict[str, Any]) -> TemporaryFolder | None:
    """Puts a temporary run folder into the options of who names none; it lasts as long as the
    result that holds it."""
    if "output_dir" in options:
        return None
    temporary = TemporaryFolder()
    options["output_dir"] = temporary.path / "run"
    return temporary


@contextlib.contextmanager
def job_of(caller: Caller, config: Any, *inputs: Inputs) -> Iterator[Job]:
    """The job of a caller; while it lasts, what lies in memory is frozen."""
    require_tracker(config.track)
    process = start_process(config.machine)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(caller.watching())
        for part in inputs:
            stack.enter_context(part.frozen())
        yield Job(
            config,
            Run(config.output_dir, config.anyway),
            process,
            progress if process.is_main else silent,
            caller.stop_requested,
            caller.command,
            asked=config,
        )
