"""What surrounds a command: output streams, warnings, libraries, and its place among processes."""

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
"""Of glibc's `mallopt`."""
LARGEST_BEFORE = 2**25
"""The largest threshold of mapping that glibc takes before 2.35."""
ALLOCATOR_VARIABLES = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
"""By which a user sets the same."""


def rank() -> int:
    """Number of this process among those that were started together, from 0."""
    return int(os.environ.get("RANK", 0))


def direct_output(as_json: bool, quiet: bool) -> None:
    """With `--json` tables go to standard error; a quiet command shows no progress."""
    from disp_llm.reporting.terminal import messages, results

    messages.quiet, results.quiet = quiet, quiet and as_json
    results.stderr = as_json


class Warnings(logging.StreamHandler):
    """Warnings in the words of the command line, each once: what holds for every row of a table is
    said for the first."""

    def __init__(self, stream: Any, command: str = "") -> None:
        super().__init__(stream)
        self.command, self.said = command, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        """Says what nobody has said yet."""
        if (message := record.getMessage()) not in self.said:
            self.said.add(message)
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """`disp-llm: ...`, with flags in place of settings."""
        return f"disp-llm: {printable(with_flags(super().format(record), flags_of(self.command)))}"


def keep_freed_memory() -> None:
    """Makes glibc keep what was freed for the next tensor.

    By default it gives large blocks back, and each of their pages is faulted in and cleared anew,
    which takes an eighth of the time of learning on a CPU and a quarter of that of reading windows
    of 2,048 tokens (docs/experiment-log.md, "Idle threads"). Whoever has set the allocator by its
    own variables keeps that.
    """
    set_already = any(name in os.environ for name in ALLOCATOR_VARIABLES)
    if platform.libc_ver()[0] == "glibc" and not set_already:
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(M_MMAP_THRESHOLD, INT_MAX) or mallopt(M_MMAP_THRESHOLD, LARGEST_BEFORE):
            mallopt(M_TRIM_THRESHOLD, INT_MAX)  # alone it would map every large block anew


def prepare_output(arguments: list[str]) -> None:
    """Makes what is said UTF-8 wherever it goes, and of warnings lines; what has no UTF-8, as bytes
    in the name of a file, is escaped, in JSON by JSON's own rule."""
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
    """Sets what libraries read as they are imported: idle threads sleep, since spinning ones slow
    down what shares the machine and win nothing here, and no bars but ours are drawn."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler of `bench` tells when it starts


def prepare_libraries(verbose: bool = False) -> None:
    """Silences other libraries' bars and advice, which would tear our own progress apart."""
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
