"""Settings -> the flags of a command, by argparse: one declaration serves parsing and help."""

import argparse
from dataclasses import MISSING
from typing import Any, NoReturn

from disp_llm.config.errors import InputError
from disp_llm.config.settings import Setting, settings_of

EXTRAS = {
    "revision": ("NAME", "Commit, tag or branch of a hub MODEL; MODEL@NAME says the same."),
    "config": ("FILE", "Read settings from a TOML file, or from the config.toml of a run."),
    "json": ("", "Print one JSON object on standard output."),
    "quiet": ("", "Print results and errors alone."),
    "verbose": ("", "Also print what libraries log, and where an error came from."),
    "help": ("", "List the usual settings."),
    "help-all": ("", "List all settings."),
}
"""Flags that are no settings: what stands beside each, and what it does."""

USUAL_EXTRAS = ("config", "json", "help-all")
"""Extras that the short help lists."""

SHORT_CHOICE = 3
"""Most choices that stand beside a flag; more are listed in its sentence."""


class Parser(argparse.ArgumentParser):
    """Reports errors in one line."""

    def error(self, message: str) -> NoReturn:
        """Raises an error that a user can correct."""
        raise InputError(message, field=self.prog.split()[-1], hint=f"see {self.prog} --help-all")


def command_parser(command: str, kind: type, short: bool = False) -> Parser:
    """Returns the parser of a command; `short` = of the usual settings alone, for help."""
    settings, extras = settings_of(kind), extras_of(kind)
    named = [one for one in settings.values() if one.is_positional]
    parser = Parser(
        prog=f"disp-llm {command}",
        usage=f"disp-llm {command} {' '.join(one.flag for one in named)} [--flag VALUE ...]",
        description=" ".join((kind.__doc__ or "").split()),
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=24),
    )
    usual = usual_settings_of(kind)
    for name, setting in settings.items():
        if not short or setting.is_positional or name in usual:
            _add(parser, setting, whole=not short)
    for name in (one for one in extras if not short or one in USUAL_EXTRAS):
        metavar, sentence = EXTRAS[name]
        if metavar:
            parser.add_argument(f"--{name}", help=sentence, metavar=metavar)
        else:
            parser.add_argument(f"--{name}", action="store_true", help=sentence)
    return parser


def extras_of(kind: type) -> list[str]:
    """Returns the flags of a command that are no settings."""
    settings, missing = settings_of(kind), set()
    if "model" not in settings:
        missing.add("revision")
    if not usual_settings_of(kind):
        missing |= {"config", "help-all"}
    return [name for name in EXTRAS if name not in missing]


def _add(parser: argparse.ArgumentParser, setting: Setting, whole: bool) -> None:
    how: dict[str, Any] = {"help": sentence_of(setting, whole).replace("%", "%%")}
    if setting.is_positional:
        # A resumed run knows its model, so `_configured` checks whether one is missing.
        parser.add_argument(setting.name, nargs="?", metavar=setting.flag, **how)
        return
    if setting.kind is bool and setting.flag.startswith("--no-"):  # else it would store False
        how["action"] = "store_true"
    elif setting.kind is bool:
        how["action"] = argparse.BooleanOptionalAction
    else:
        how["metavar"] = _metavar(setting)
    if setting.takes_several:
        how |= {"nargs": "+", "action": "extend"}
    elif setting.is_switch_too:
        how |= {"nargs": "?", "const": True}
    parser.add_argument(setting.flag, dest=setting.name, required=setting.is_required, **how)


def _metavar(setting: Setting) -> str:
    """Returns what stands beside a flag: `{auto,yes,no}`, `N`, `PATH`."""
    if setting.choices and len(setting.choices) <= SHORT_CHOICE:
        return "{" + ",".join(setting.choices) + "}"
    return setting.described[0]


def sentence_of(setting: Setting, whole: bool) -> str:
    """Returns what help says of a setting: its first sentence or all of them, and its default."""
    first, *others = setting.sentence.rstrip(".").split(". ")
    short = ". ".join([first, *(one for one in others if one.startswith("Default"))]) + "."
    said = setting.sentence if whole else short
    if len(setting.choices) > SHORT_CHOICE:
        said += f" One of {', '.join(setting.choices)}."
    default = setting.default
    if default not in ("", (), None, False, MISSING) and "default" not in said.lower():
        values = default if isinstance(default, tuple) else (default,)
        said += f" (default: {' '.join(map(str, values))})"
    return said


def usual_settings_of(kind: type) -> tuple[str, ...]:
    """Returns the settings that the short help lists; empty if it lists all."""
    return tuple(getattr(kind, "USUAL", "").split())


def help_of(command: str, kind: type, complete: bool) -> str:
    """Returns what `--help` prints or, if `complete`, `--help-all`."""
    short = bool(usual_settings_of(kind)) and not complete
    return command_parser(command, kind, short).format_help().rstrip()


def completion(kinds: dict[str, type], shell: str) -> str:
    """Returns the script by which a shell completes commands, flags, choices and files.

    Raises:
        InputError: the shell is unknown.
    """
    import shtab

    if shell not in shtab.SUPPORTED_SHELLS:
        known = ", ".join(shtab.SUPPORTED_SHELLS)
        raise InputError(f"no shell '{shell}'", field="--completion", hint=f"use one of {known}")
    whole = argparse.ArgumentParser(prog="disp-llm", add_help=False)
    commands = whole.add_subparsers()
    for name, kind in kinds.items():
        about = (kind.__doc__ or "").split("\n")[0]  # without it shtab leaves the command out
        commands.add_parser(name, parents=[command_parser(name, kind)], help=about, add_help=False)
    return shtab.complete(whole, shell)
