"""Arguments -> the settings of the command they name. Imports no other command, and nothing heavy.

Defaults < recipe, or the resumed run's settings < `--config` < flags.
"""

import importlib
import logging
import shlex
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from disp_llm.cli.flags import command_parser, completion, help_of
from disp_llm.config.checks import check_settings
from disp_llm.config.errors import InputError, nearest
from disp_llm.config.names import name_of
from disp_llm.config.plugins import Command, added, added_names
from disp_llm.config.recipes import (
    configured,
    load_recipe,
    load_settings,
    merged,
    nested,
    resolved,
)
from disp_llm.config.schema import to_path
from disp_llm.config.settings import Setting, settings_of

logger = logging.getLogger(__name__)

ADDED = "disp_llm.commands"
"""Entry-point group by which installed packages add commands."""

COMMANDS = {
    "prune": "prune:PruneConfig",
    "export": "commands:ExportConfig",
    "recover": "recover:RecoverConfig",
    "report": "commands:ReportConfig",
    "eval": "commands:EvalConfig",
    "doctor": "commands:DoctorConfig",
    "bench": "commands:BenchConfig",
    "generate": "commands:GenerateConfig",
    "chat": "commands:ChatConfig",
    "convert": "commands:ConvertConfig",
    "push": "commands:PushConfig",
    "verify": "commands:VerifyConfig",
}
"""Our commands: the module in `disp_llm.config`, and the class of their settings."""

RESUMABLE = ("prune", "recover")

PRUNED_SHARES = ("--sparsity", "--ratio", "--amount", "--pruning-ratio", "--compression-ratio")
"""Other tools' flags for the share that is pruned."""


def command_names() -> list[str]:
    """Returns our commands, then those of installed packages."""
    return [*COMMANDS, *added_names(ADDED)]


def command_of(name: str) -> Command:
    """Returns a command: its settings class, and what runs it, which is imported when called.

    Raises:
        InputError: there is no such command.
    """
    if name in COMMANDS:
        module, _, kind = COMMANDS[name].partition(":")
        config = getattr(importlib.import_module(f"disp_llm.config.{module}"), kind)
        return Command(config, partial(run_task, name))
    command = added(ADDED, name, Command, name)
    if command is None:
        what = f"is no command{nearest(name, command_names())}"
        raise InputError(what, field=name, hint="see disp-llm --help")
    return command


def run_task(name: str, config: Any) -> dict[str, Any]:
    """Runs the function of that name in `cli/commands.py`, which is imported only now."""
    return getattr(importlib.import_module("disp_llm.cli.commands"), name)(config)


def parse(arguments: list[str]) -> Any:
    """Returns the checked configuration that the arguments ask for. Ends the process after
    `--help`, `--help-all`, `--version` and `--completion`."""
    command, *words = arguments or ["--help"]
    if command == "--version":
        _print(f"disp-llm {version('disp-llm')}")
    if command in ("-h", "--help"):
        _print(_overview())
    if command == "--completion":
        _print(completion(all_settings(), " ".join(words)))
    kind = command_of(command).config
    if {"-h", "--help", "--help-all"} & set(words):
        _print(help_of(command, kind, complete="--help-all" in words))
    given = given_settings(command, words)
    config = _configured(command, kind, given)
    check_settings(config, given)
    return config


def given_settings(command: str, words: list[str]) -> dict[str, Any]:
    """Returns the settings and extras that a command's words give, converted to their types.

    Raises:
        InputError: unknown or malformed arguments.
    """
    kind = command_of(command).config
    settings, parser = settings_of(kind), command_parser(command, kind)
    found, others = parser.parse_known_args(words)
    for word in others:
        if word.startswith("-"):
            raise _unknown(word, [setting.flag for setting in settings.values()], parser.prog)
    if others:
        what = f"'{others[0]}' belongs to no option"
        raise InputError(what, field=command, hint=f"see {parser.prog} --help")
    return {name: _value(value, settings.get(name)) for name, value in vars(found).items()}


def _unknown(word: str, flags: list[str], program: str) -> InputError:
    flag = word.partition("=")[0]
    if flag in PRUNED_SHARES:
        hint = "give the share that stays: a sparsity of 0.3 is --keep 0.7"
        return InputError("is no option", field=flag, hint=hint)
    hint = f"see {program} --help-all"
    return InputError(f"is no option{nearest(flag, flags)}", field=flag, hint=hint)


def _value(value: Any, setting: Setting | None) -> Any:
    """Converts the words of a setting to its type."""
    if setting is None:
        return value
    words = value if isinstance(value, list) else [value]
    if not all(str(word).strip() for word in words):
        hint = "leave it out, or set the variable that it is of"
        raise InputError("an empty word", field=setting.flag, hint=hint)
    try:
        return msgspec.convert(value, setting.kind, strict=False, dec_hook=to_path)
    except (msgspec.ValidationError, UnicodeError):
        what = f"'{' '.join(map(str, words))}' is not {setting.wanted}"
        raise InputError(what, field=setting.flag, hint="correct it") from None


def _configured(command: str, kind: type, given: dict[str, Any]) -> Any:
    """Returns a command's settings: the given ones over the stored, recipe's or default ones."""
    settings = settings_of(kind)
    file = load_settings(Path(given["config"])) if "config" in given else {}
    if command in RESUMABLE and _goes_on(given.get("resume"), output_folder(command, given)):
        from disp_llm.runs.settings import stored_config

        tables = resolved(stored_config(output_folder(command, given), kind))
    else:
        tables = resolved(kind(**{one.name: "" for one in settings.values() if one.is_required}))
        if "recipe" in settings:
            name = given.get("recipe") or file.get("recipe") or tables["recipe"]
            tables = merged(kind, tables, load_recipe(name), "recipe")
    tables = merged(kind, tables, file, "config")
    for name, value in given.items():
        if name in settings:
            tables = merged(kind, tables, nested(settings[name].path, value), name)
    for setting in settings.values():
        if setting.is_positional and not tables[setting.name]:
            hint = f"see disp-llm {command} --help"
            raise InputError("is missing", field=setting.flag, hint=hint)
    if "revision" in given:
        tables["model"] = f"{tables['model'].partition('@')[0]}@{given['revision']}"
    return configured(tables, kind)


def output_folder(command: str, given: dict[str, Any]) -> Path:
    """Returns the run folder that a command is asked to use."""
    return given.get("output_dir") or settings_of(command_of(command).config)["output_dir"].default


def _goes_on(resume: Any, folder: Path) -> bool:
    """Returns whether a run is resumed; flags then change its settings."""
    return resume is True or (resume == "auto" and (folder / "config.toml").exists())


def _print(text: str) -> NoReturn:
    print(text, flush=True)
    raise SystemExit(0)


def all_settings() -> dict[str, type]:
    """Returns the settings class of every command; warns of a broken package and leaves it out."""
    kinds: dict[str, type] = {}
    for name in command_names():
        try:
            kinds[name] = command_of(name).config
        except InputError as error:
            logger.warning("%s", error)
    return kinds


def _overview() -> str:
    """Returns the overview, with one line per command."""
    lines = [
        f"  {name:10}{' '.join((kind.__doc__ or '').split('. ')[0].split())}"
        for name, kind in all_settings().items()
    ]
    return "\n".join(
        [
            "usage: disp-llm COMMAND ... | --version | --completion SHELL\n",
            "Makes Hugging Face decoder LLMs physically smaller.\n",
            *lines,
            "\nSettings of a command: disp-llm COMMAND --help",
        ]
    )


def command_line() -> str:
    """Returns how this process was started, without files' folders, which `config.toml` has."""

    def shown(word: str) -> str:
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        return f"{flag}{equals}{name_of(value)}"

    return shlex.join(["disp-llm", *map(shown, sys.argv[1:])])
