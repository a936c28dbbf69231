"""Errors that a user can correct, in the words of the command line: settings become flags."""

import json
import re
import sys

from disp_llm.cli.flags import extras_of
from disp_llm.cli.parsing import command_names, command_of
from disp_llm.config.errors import InputError, printable
from disp_llm.config.settings import settings_of


def explained(error: Exception, command: str) -> InputError | None:
    """Returns what a user can do about an error; None if the error is ours."""
    if isinstance(error, InputError):
        return error
    program = command if command in command_names() else "disp-llm"
    if isinstance(error, ConnectionError | TimeoutError) and not error.filename:
        return InputError(str(error), field=program, hint="check the network")
    if isinstance(error, OSError):  # a full disk, or a file that is missing or out of reach
        hint = "make room, or name a file that can be read and written"
        field = str(error.filename or program)
        return InputError(error.strerror or str(error), field=field, hint=hint)
    if not isinstance(error, RuntimeError | MemoryError):
        return None
    kinds, said = {kind.__name__ for kind in type(error).__mro__}, str(error)
    if "DistError" in kinds or "/gloo/" in said or "by peer" in said:
        hint = "start all again with `resume` auto, which goes on from the last checkpoint"
        return InputError("another process has ended or hangs", field=program, hint=hint)
    full = ("not enough memory", "can't allocate memory")  # a GPU's error has its own class
    if kinds & {"OutOfMemoryError", "MemoryError"} or any(words in said for words in full):
        hint = "free memory, or name a smaller model"
        if "gradient_checkpointing" in flags_of(command):
            hint = "shorter windows, a smaller batch or `gradient_checkpointing` need less"
        return InputError("out of memory", field=program, hint=hint)
    return None


def print_error(error: InputError, command: str, as_json: bool) -> None:
    """Prints one line on standard error and, with `as_json`, an object on standard output."""
    flags = flags_of(command)
    what, hint = with_flags(error.what, flags), with_flags(error.hint, flags)
    tell(f"{flags.get(error.field, error.field)}: {what}; {hint}")
    if as_json:
        names = {flag: name for name, flag in flags.items()}
        field = names.get(error.field, error.field)
        if field.startswith("--"):  # a flag that the command does not have
            field = field[2:].replace("-", "_")
        print(json.dumps({"error": what, "field": field, "hint": hint}), flush=True)


def tell(line: str) -> None:
    """Prints one line on standard error."""
    if sys.stderr is not None:  # None where the shell has closed it
        print(f"disp-llm: {printable(line)}", file=sys.stderr, flush=True)


def flags_of(command: str) -> dict[str, str]:
    """Returns the command line's names of a command's settings: `--eval-text`, `MODEL`."""
    try:
        kind = command_of(command).config
    except InputError:
        return {}
    extras = {name: f"--{name}" for name in extras_of(kind)}
    return extras | {name: setting.flag for name, setting in settings_of(kind).items()}


def with_flags(text: str, flags: dict[str, str]) -> str:
    """Replaces settings in backticks by their flags; leaves other code in backticks as it is."""
    return re.sub(r"`(\w+)`", lambda found: flags.get(found[1], found[0]), text)
