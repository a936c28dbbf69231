"""The surroundings of a command: output streams, warnings, libraries, and its rank."""

import ctypes
import io
import logging
import os
import platform
import sys
import warnings
from typing import Any

from disp_llm.cli.errors import flags_of, with_flags
from disp_llm.cli.signals import end_tidily
from disp_llm.config.errors import printable

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, INT_MAX = -1, -3, 2**31 - 1
"""Parameters of glibc's `mallopt`, and their largest value."""
LARGEST_BEFORE = 2**25
"""Largest mmap threshold that glibc accepts before 2.35."""
ALLOCATOR_VARIABLES = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
"""Variables by which a user sets the same."""


def rank() -> int:
    """Returns the number of this process among those started together, from 0."""
    return int(os.environ.get("RANK", 0))


def direct_output(as_json: bool, quiet: bool) -> None:
    """Sends tables with `--json` to standard error, or nowhere if quiet; quiet hides progress."""
    from disp_llm.reporting.terminal import messages, results

    messages.quiet, results.quiet = quiet, quiet and as_json
    results.stderr = as_json


class Warnings(logging.StreamHandler):
    """Prints warnings in the words of the command line, each once: one that holds for every row of
    a table appears at the first."""

    def __init__(self, stream: Any, command: str = "") -> None:
        super().__init__(stream)
        self.command, self.said = command, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        """Prints what was not printed before."""
        if (message := record.getMessage()) not in self.said:
            self.said.add(message)
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """Formats a message as `disp-llm: ...`, with flags in place of settings."""
        return f"disp-llm: {printable(with_flags(super().format(record), flags_of(self.command)))}"


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next tensor.

    By default glibc gives large blocks back, and each of their pages is faulted in and cleared
    anew. That takes an eighth of learning time on a CPU, and a quarter of the time of reading
    windows of 2,048 tokens (docs/experiment-log.md, "Idle threads"). A user who has set the
    allocator's own variables keeps them.
    """
    set_already = any(name in os.environ for name in ALLOCATOR_VARIABLES)
    if platform.libc_ver()[0] == "glibc" and not set_already:
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(M_MMAP_THRESHOLD, INT_MAX) or mallopt(M_MMAP_THRESHOLD, LARGEST_BEFORE):
            mallopt(M_TRIM_THRESHOLD, INT_MAX)  # alone, this would map every large block anew


def prepare_output(arguments: list[str]) -> None:
    """Makes all output UTF-8, and warnings plain lines. What is not UTF-8, such as bytes in a file
    name, is escaped; in JSON by JSON's own rule."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where the shell has closed it
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    level = logging.INFO if "--verbose" in arguments else logging.WARNING
    if rank() > 0 or "--quiet" in arguments:  # the first of several processes warns for all
        level = logging.ERROR
    handler = Warnings(sys.stderr, "".join(arguments[:1]))
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler])
    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, *place, **line: str(message)


def prepare_environment() -> None:
    """Sets variables that libraries read on import. Idle threads sleep, since spinning ones slow
    down what shares the machine and win nothing here. No progress bars but ours are drawn."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler of `bench` logs its start


def prepare_libraries(verbose: bool = False) -> None:
    """Prepares allocator and signals. Silences other libraries' bars, and their advice unless
    `verbose`, which would tear our own progress apart."""
    prepare_environment()
    keep_freed_memory()
    end_tidily()
    if verbose:
        return
    warnings.filterwarnings("ignore", module="torch|transformers|accelerate")
    import huggingface_hub
    import transformers

    huggingface_hub.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
