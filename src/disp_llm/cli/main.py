"""The entry point `disp-llm`: one subcommand a file; exit codes. Results go to standard output: as
tables, or with `--json` as one object. Progress and messages go to standard error."""

import ctypes
import io
import json
import logging
import os
import platform
import re
import shlex
import sys
import time
import traceback
import warnings
from typing import NoReturn

from disp_llm.cli.errors import flags_of, print_error, tell, with_flags
from disp_llm.cli.parsing import (
    RESUMABLE,
    given_settings,
    output_folder,
    parse,
    program,
    runner,
)
from disp_llm.cli.signals import end_tidily, has_been_asked_to_end
from disp_llm.config.errors import InputError, printable

USAGE_ERROR = 2
INTERRUPTED = 130

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, INT_MAX = -1, -3, 2**31 - 1
"""Of glibc's `mallopt`."""
ALLOCATOR_VARIABLES = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
"""By which a user sets the same."""


def main() -> None:
    """Entry point: exit code 0, 2 for bad input (one line), 130 for Ctrl-C, whenever it comes."""
    arguments = sys.argv[1:]
    try:
        _main(arguments)
    except (KeyboardInterrupt, Exception) as error:
        # Some libraries turn a Ctrl-C into an error of their own.
        if not isinstance(error, KeyboardInterrupt) and not has_been_asked_to_end():
            raise
        if rank() == 0:
            tell(f"interrupted{_how_to_resume(arguments)}")
        _end(INTERRUPTED)


def _main(arguments: list[str]) -> None:
    command, as_json = " ".join(arguments[:1]), "--json" in arguments
    try:
        try:
            prepare_output(arguments)
            require_place()
            config = parse(arguments)
            prepare_libraries(verbose="--verbose" in arguments)
            direct_output(as_json, quiet="--quiet" in arguments)
            result = runner(command, "--dry-run" in arguments)(config)
            if as_json and result:  # of several processes, the first has it
                _write(json.dumps(result, ensure_ascii=False) + "\n")
            if result.get("ok") is False:  # `verify` has found something
                sys.exit(USAGE_ERROR)
        finally:
            _write("")  # at the interpreter's end it would be too late to say what failed
    except InputError as error:
        _refuse(error, command, as_json)
    except RuntimeError as error:
        if type(error).__name__ == "Ended":  # the process that has failed says why
            _end(USAGE_ERROR)
        found = _explained(error, arguments)
        if found is None:
            raise
        _refuse(found, command, as_json)
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        _drop_output()
        sys.exit(1)
    except OSError as error:  # a file that nobody expected to be missing or out of reach
        said, where = error.strerror or str(error), str(error.filename or program(arguments))
        hint = "make room, or name a file that can be read and written"
        _refuse(InputError(said, field=where, hint=hint), command, as_json)


def _write(text: str) -> None:
    """Writes to standard output, and with it what that still holds.

    Raises:
        InputError: it cannot be written, as on a full disk.
        BrokenPipeError: nobody reads it any more.
    """
    try:
        if sys.stdout is not None:  # None where the shell has closed it
            if text:
                sys.stdout.write(text)
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(
            f"cannot be written ({error.strerror})",
            field="standard output",
            hint="make room, or write to another file",
        ) from error


def _refuse(error: InputError, command: str, as_json: bool) -> NoReturn:
    """Says what is wrong and ends the process, also where standard output cannot be written. Of
    several processes the first says it, and another one if the first has not ended by then."""
    if rank() > 0:
        time.sleep(PAUSE)
    try:
        if "--verbose" in sys.argv:
            traceback.print_exception(error)
        print_error(error, command, as_json)
        _write("")
    except (OSError, InputError):
        _drop_output()
    _end(USAGE_ERROR)


def _end(code: int) -> NoReturn:
    """Ends the process. One of several is kept from it by the group that the others may have left,
    unless it leaves at once."""
    if _number("WORLD_SIZE", 1) > 1:
        if sys.stderr is not None:
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


PAUSE = 5.0
"""Seconds that another process than the first waits before it says why it ends: whoever has started
them ends it before, if the first has."""


def rank() -> int:
    """Number of this process among those that were started together, from 0."""
    return _number("RANK", 0)


def _number(variable: str, default: int) -> int:
    """What a variable of the environment says, if it is a number."""
    said = os.environ.get(variable, "")
    return int(said) if PLACE.fullmatch(said) else default


PLACE = re.compile(r"[0-9]{1,9}")
"""What `torchrun` says to a process of its place among others."""


def require_place() -> None:
    """Refuses variables that tell the place of this process among others and that are no numbers.

    Raises:
        InputError: naming the variable.
    """
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        said = os.environ.get(variable, "0")
        if not PLACE.fullmatch(said):
            raise InputError(
                f"'{said}' is no number", field=variable, hint="unset it, or start by torchrun"
            )


def _drop_output() -> None:
    """What standard output still holds goes nowhere, so that nothing fails when it is closed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def direct_output(as_json: bool, quiet: bool) -> None:
    """With `--json` tables go to standard error; a quiet command shows no progress."""
    from disp_llm.reporting.terminal import messages, results

    messages.quiet, results.quiet = quiet, quiet and as_json
    results.stderr = as_json


def _explained(error: RuntimeError, arguments: list[str]) -> InputError | None:
    """What a user can do about an error that a library raised; None where it is ours."""
    field = program(arguments)
    if _has_lost_another(error):
        hint = "start all again with `resume` auto, which goes on from the last checkpoint"
        return InputError("another process has ended or hangs", field=field, hint=hint)
    if _is_out_of_memory(error):
        hint = "shorter windows, a smaller batch or `gradient_checkpointing` need less"
        return InputError("out of memory", field=field, hint=hint)
    return None


def _has_lost_another(error: RuntimeError) -> bool:
    """Whether it is the word of what connects processes for one that does not answer."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    said = str(error)
    return "DistError" in kinds or "/gloo/" in said or "by peer" in said


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether it is a GPU's, which has a class of its own (torch is loaded by then), or the
    machine's."""
    said = ("not enough memory", "can't allocate memory")
    return type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in said)


def _how_to_resume(arguments: list[str]) -> str:
    """What the command that was stopped can be followed by; nothing where it left nothing."""
    try:
        given = given_settings(arguments[0], arguments[1:]) if arguments else {}
    except InputError:  # it was stopped before it was understood
        return ""
    if not arguments or arguments[0] not in RESUMABLE:
        return ""
    if not (output_folder(arguments[0], given) / "config.toml").exists():
        return ""
    again = shlex.join(arguments) + ("" if "resume" in given else " --resume")
    return f"; go on with: disp-llm {again}"


class LineFormatter(logging.Formatter):
    """Warnings in the words of the command line."""

    def __init__(self, command: str = "") -> None:
        super().__init__()
        self.command = command

    def format(self, record: logging.LogRecord) -> str:
        """`disp-llm: ...`, with flags in place of settings."""
        return f"disp-llm: {printable(with_flags(super().format(record), flags_of(self.command)))}"


class Once(logging.Filter):
    """Lets each message through once: what holds for every row of a table is said for the first."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether nobody has said it yet."""
        said = record.getMessage()
        is_new = said not in self.said
        self.said.add(said)
        return is_new


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
        mallopt(M_MMAP_THRESHOLD, INT_MAX)
        mallopt(M_TRIM_THRESHOLD, INT_MAX)


def prepare_output(arguments: list[str]) -> None:
    """Makes what is said UTF-8 wherever it goes, and of warnings lines; what has no UTF-8, as bytes
    in the name of a file, is escaped, in JSON by JSON's own rule."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where the shell has closed it
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter("".join(arguments[:1])))
    handler.addFilter(Once())
    level = logging.INFO if "--verbose" in arguments else logging.WARNING
    if rank() > 0 or "--quiet" in arguments:  # the first of several processes warns for all
        level = logging.ERROR
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, *place, **line: str(message)


def prepare_libraries(verbose: bool = False) -> None:
    """Makes idle threads sleep, since spinning ones slow down what shares the machine and win
    nothing here, and silences other libraries' bars and advice, which would tear our own progress
    apart."""
    keep_freed_memory()
    end_tidily()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler of `bench` tells when it starts
    if verbose:
        return
    warnings.filterwarnings("ignore", module="torch|transformers|accelerate")
    import huggingface_hub
    import transformers

    huggingface_hub.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
