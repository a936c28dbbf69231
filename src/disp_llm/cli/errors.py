"""Errors that a user can correct, in the words of the command line: settings become flags."""

import json
import re
import sys

from disp_llm.cli.flags import extras_of
from disp_llm.cli.parsing import command_of
from disp_llm.config.errors import InputError, printable
from disp_llm.config.settings import settings_of


def print_error(error: InputError, command: str, as_json: bool) -> None:
    """Prints one line on standard error and, if asked for, an object on standard output."""
    flags = flags_of(command)
    what, hint = with_flags(error.what, flags), with_flags(error.hint, flags)
    tell(f"{flags.get(error.field, error.field)}: {what}; {hint}")
    if as_json:
        names = {flag: name for name, flag in flags.items()}
        field = names.get(error.field, error.field)
        if field.startswith("--"):  # a flag that the command does not have
            field = field[2:].replace("-", "_")
        print(json.dumps({"error": what, "field": field, "hint": hint}))


def tell(line: str) -> None:
    """Says something in one line on standard error, unless the shell has closed it."""
    if sys.stderr is not None:
        print(f"disp-llm: {printable(line)}", file=sys.stderr)


def flags_of(command: str) -> dict[str, str]:
    """What the command line calls the settings of a command: `--eval-text`, `MODEL`."""
    try:
        kind = command_of(command).config
    except InputError:
        return {}
    extras = {name: f"--{name}" for name in extras_of(kind)}
    return extras | {name: setting.flag for name, setting in settings_of(kind).items()}


def with_flags(text: str, flags: dict[str, str]) -> str:
    """A text whose settings in backticks are flags; other code in backticks stays as it is."""
    return re.sub(r"`(\w+)`", lambda found: flags.get(found[1], found[0]), text)
