"""The entry point `disp-llm`: one subcommand a file; exit codes. Results go to standard output: as
tables, or with `--json` as one object. Progress and messages go to standard error."""

import json
import os
import shlex
import sys
import time
import traceback
from typing import NoReturn

from disp_llm.cli.environment import (
    direct_output,
    number_of,
    prepare_libraries,
    prepare_output,
    rank,
    require_place,
)
from disp_llm.cli.errors import print_error, tell
from disp_llm.cli.parsing import (
    RESUMABLE,
    command_of,
    given_settings,
    output_folder,
    parse,
    program,
)
from disp_llm.cli.signals import has_been_asked_to_end
from disp_llm.config.errors import InputError

USAGE_ERROR = 2
INTERRUPTED = 130


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
            result = command_of("dry_run" if "--dry-run" in arguments else command).run(config)
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
    if number_of("WORLD_SIZE", 1) > 1:
        if sys.stderr is not None:
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


PAUSE = 5.0
"""Seconds that another process than the first waits before it says why it ends: whoever has started
them ends it before, if the first has."""


def _drop_output() -> None:
    """What standard output still holds goes nowhere, so that nothing fails when it is closed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explained(error: RuntimeError, arguments: list[str]) -> InputError | None:
    """What a user can do about an error of a library; None where it is ours."""
    kinds, said = {kind.__name__ for kind in type(error).__mro__}, str(error)
    field = program(arguments)
    if "DistError" in kinds or "/gloo/" in said or "by peer" in said:
        hint = "start all again with `resume` auto, which goes on from the last checkpoint"
        return InputError("another process has ended or hangs", field=field, hint=hint)
    full = ("not enough memory", "can't allocate memory")  # a GPU's error has its own class
    if "OutOfMemoryError" in kinds or any(words in said for words in full):
        hint = "shorter windows, a smaller batch or `gradient_checkpointing` need less"
        return InputError("out of memory", field=field, hint=hint)
    return None


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
