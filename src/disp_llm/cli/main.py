"""The entry point `disp-llm` and its exit codes. Results go to standard output: as tables, or with
`--json` as one object. Progress and messages go to standard error."""

import json
import os
import shlex
import sys
import time
import traceback
from typing import NoReturn

from disp_llm.cli.environment import (
    direct_output,
    prepare_environment,
    prepare_libraries,
    prepare_output,
    rank,
)
from disp_llm.cli.errors import explained, print_error, tell
from disp_llm.cli.parsing import (
    RESUMABLE,
    command_of,
    given_settings,
    output_folder,
    parse,
)
from disp_llm.cli.signals import has_been_asked_to_end
from disp_llm.config.errors import InputError

UNREAD, USAGE_ERROR, INTERRUPTED = 1, 2, 130

PAUSE = 5.0
"""Seconds that any process but the first waits before it reports an error. If the first has ended,
the launcher ends the others within that time."""


def main() -> None:
    """Runs a command. Exit code: 0; 1 if the output's reader is gone; 2 for bad input (one line),
    or if `verify` finds problems; 130 for Ctrl-C at any time."""
    arguments = sys.argv[1:]
    try:
        code = _run(arguments)
    except (KeyboardInterrupt, Exception) as error:
        # Some libraries turn a Ctrl-C into an error of their own.
        if not isinstance(error, KeyboardInterrupt) and not has_been_asked_to_end():
            raise
        if rank() == 0:
            tell(f"interrupted{_how_to_resume(arguments)}")
        code = INTERRUPTED
    if code:
        _end(code)


def _run(arguments: list[str]) -> int:
    command, as_json = " ".join(arguments[:1]), "--json" in arguments
    try:
        prepare_output(arguments)
        prepare_environment()  # a stored run or a method of another package imports torch
        config = parse(arguments)
        prepare_libraries(verbose="--verbose" in arguments)
        direct_output(as_json, quiet="--quiet" in arguments)
        result = command_of(command).run(config)
        if as_json and result:  # only the first of several processes has it
            print(json.dumps(result, ensure_ascii=False))
        # At the interpreter's end it would be too late to say what failed.
        print(end="", flush=True)
        return USAGE_ERROR if result.get("ok") is False else 0  # `verify` has found something
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        _drop_output()
        return UNREAD
    except Exception as error:
        if type(error).__name__ == "Ended":  # the process that has failed says why
            return USAGE_ERROR
        found = explained(error, command)
        if found is None:
            raise
        _tell_error(found, command, as_json)
        return USAGE_ERROR


def _tell_error(error: InputError, command: str, as_json: bool) -> None:
    """Reports an error. Of several processes the first reports it; another does so if the first has
    not ended by then."""
    if rank() > 0:
        time.sleep(PAUSE)
    if "--verbose" in sys.argv:
        traceback.print_exception(error)
    try:
        print_error(error, command, as_json)
        print(end="", flush=True)
    except OSError:
        _drop_output()


def _end(code: int) -> NoReturn:
    """Ends the process. One of several leaves at once: otherwise the process group, which the
    others may have left, would hold it back."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        os._exit(code)
    sys.exit(code)


def _drop_output() -> None:
    """Discards what standard output still holds, so that closing it cannot fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _how_to_resume(arguments: list[str]) -> str:
    """Returns the hint that resumes the stopped command; empty if the command left nothing."""
    if not arguments or arguments[0] not in RESUMABLE:
        return ""
    try:
        given = given_settings(arguments[0], arguments[1:])
    except InputError:  # it was stopped before it was understood
        return ""
    if not (output_folder(arguments[0], given) / "config.toml").exists():
        return ""
    again = "" if given.get("resume") else " --resume"
    return f"; go on with: disp-llm {shlex.join(arguments)}{again}"
