"""Errors that a user can correct, in the words of the command line: settings become flags."""

import json
import re
import sys

from disp_llm.cli.parsing import COMMANDS, settings
from disp_llm.config.errors import InputError, printable

POSITIONAL = {"model": "MODEL", "folder": "FOLDER", "run": "RUN", "runs": "RUN", "name": "NAME"}
"""Settings that are given without a flag, and what help calls them."""


def print_error(error: InputError, command: str, as_json: bool) -> None:
    """Prints one line on standard error and, if asked for, an object on standard output.

    Args:
        command: the name of the command that was asked for.
    """
    what, hint = with_flags(error.what), with_flags(error.hint)
    tell(f"{flag_of(error.field, command)}: {what}; {hint}")
    if as_json:
        print(json.dumps({"error": what, "field": setting_of(error.field), "hint": hint}))


def tell(line: str) -> None:
    """Says something in one line on standard error, unless the shell has closed it."""
    if sys.stderr is not None:
        print(f"disp-llm: {printable(line)}", file=sys.stderr)


def flag_of(field: str, command: str) -> str:
    """What the command line calls a field: `--eval-text`, `MODEL`; files as they are."""
    if field in POSITIONAL:
        config = COMMANDS.get(command)
        return POSITIONAL[field] if config and field in settings(config) else field
    return f"--{field.replace('_', '-')}" if field in all_settings() else field


def setting_of(field: str) -> str:
    """The name of the setting where the parser named its flag."""
    return field.removeprefix("--").replace("-", "_") if field.startswith("--") else field


def with_flags(text: str) -> str:
    """A text whose settings in backticks are flags; other code in backticks stays as it is."""

    def flag(found: re.Match[str]) -> str:
        name = found[1]
        if name in POSITIONAL:
            return POSITIONAL[name]
        return f"--{name.replace('_', '-')}" if name in all_settings() else found[0]

    return re.sub(r"`(\w+)`", flag, text)


def all_settings() -> set[str]:
    """Names of everything that some command can be asked."""
    return set().union(*map(settings, COMMANDS.values()))
