"""Arguments -> the settings of the command that they name; no other is imported, and nothing heavy.

Defaults < recipe, or the run that goes on < `--config` < `--set` < flags.
"""

import argparse
import dataclasses
import importlib
import logging
import shlex
import sys
import tomllib
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from disp_llm.cli.flags import command_parser, completion, help_of
from disp_llm.config.checks import require_alternatives
from disp_llm.config.errors import InputError, nearest
from disp_llm.config.names import name_of
from disp_llm.config.plugins import Command, added, added_names
from disp_llm.config.recipes import apply_recipe, load_recipe, load_settings, with_value
from disp_llm.config.schema import to_path
from disp_llm.config.settings import Setting, settings_of

logger = logging.getLogger(__name__)

ADDED = "disp_llm.commands"
"""Group of entry points by which installed packages add commands."""

COMMANDS = {
    "prune": "prune:PruneConfig",
    "export": "export:ExportConfig",
    "recover": "recover:RecoverConfig",
    "report": "report:ReportConfig",
    "eval": "eval:EvalConfig",
    "doctor": "doctor:DoctorConfig",
    "bench": "bench:BenchConfig",
    "convert": "convert:ConvertConfig",
    "push": "convert:PushConfig",
    "verify": "verify:VerifyConfig",
}
"""Our commands: the module in `disp_llm.config`, and the class of their settings."""

RESUMABLE = ("prune", "recover")

PRUNED_SHARES = {
    *("--sparsity", "--sparsity-ratio", "--ratio", "--amount"),
    *("--pruning-ratio", "--prune-ratio", "--compression-ratio"),
}
"""What other tools call the share that is pruned."""


def command_names() -> list[str]:
    """Our commands, then those of installed packages."""
    return [*COMMANDS, *added_names(ADDED)]


def command_of(name: str) -> Command:
    """A command: what it can be asked, and what runs it, which is imported when it is called.

    Raises:
        InputError: there is none, or the package that adds it is broken.
    """
    if name == "dry_run":
        return Command(object, partial(_run, name))
    if name in COMMANDS:
        module, _, kind = COMMANDS[name].partition(":")
        config = getattr(importlib.import_module(f"disp_llm.config.{module}"), kind)
        return Command(config, partial(_run, name))
    command = added(ADDED, name, Command, name)
    if command is None:
        what = f"is no command{nearest(name, command_names())}"
        raise InputError(what, field=name, hint="see disp-llm --help")
    return command


def _run(name: str, config: Any) -> dict[str, Any]:
    return getattr(importlib.import_module("disp_llm.cli.commands"), name)(config)


def parse(arguments: list[str]) -> Any:
    """The configuration that the arguments ask for, checked. Ends the process after `--help`,
    `--help-all`, `--version` and `--completion`."""
    command, *words = arguments or ["--help"]
    if command == "--version":
        _print(f"disp-llm {version('disp-llm')}")
    if command in ("-h", "--help"):
        _print(_overview())
    if command == "--completion":
        _print(completion(all_settings(), "".join(words)))
    kind = command_of(command).config
    if {"-h", "--help", "--help-all"} & set(words):
        _print(help_of(command, kind, complete="--help-all" in words))
    given = given_settings(command, words)
    config = _configured(command, kind, given)
    require_alternatives(config, given)
    config.validate()
    return config


def given_settings(command: str, words: list[str]) -> dict[str, Any]:
    """What the words of a command say of its settings and extras, as their types.

    Raises:
        InputError: unknown or malformed arguments.
    """
    kind = command_of(command).config
    settings, parser = settings_of(kind), command_parser(command, kind)
    try:
        found, others = parser.parse_known_args(list(map(_spelt, words)))
    except argparse.ArgumentError as error:
        field, hint = error.argument_name or parser.prog, f"see {parser.prog} --help-all"
        raise InputError(error.message, field=field, hint=hint) from None
    for word in others:
        if word.startswith("-"):
            raise _unknown(word, [setting.flag for setting in settings.values()], parser.prog)
    given = _positionals(settings, others, parser.prog) | vars(found)
    return {name: _value(name, said, settings.get(name)) for name, said in given.items()}


def _spelt(word: str) -> str:
    """A flag as we spell it: `--eval_text` is `--eval-text`."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value


def _unknown(word: str, flags: list[str], program: str) -> InputError:
    flag = word.partition("=")[0]
    if flag in PRUNED_SHARES:
        hint = "give the share that stays: a sparsity of 0.3 is --keep 0.7"
        return InputError("is no option", field=flag, hint=hint)
    hint = f"see {program} --help-all"
    return InputError(f"is no option{nearest(flag, flags)}", field=flag, hint=hint)


def _positionals(
    settings: dict[str, Setting], words: list[str], program: str
) -> dict[str, list[Any]]:
    """The words without a flag, each for the setting whose turn it is."""
    given: dict[str, list[Any]] = {}
    left = list(words)
    for setting in settings.values():
        if setting.is_positional and left:
            given[setting.name] = [left if setting.takes_several else left.pop(0)]
            left = [] if setting.takes_several else left
    if left:
        raise InputError(
            f"'{left[0]}' belongs to no option", field=program, hint=f"see {program} --help"
        )
    return given


def _value(name: str, said: list[Any], setting: Setting | None) -> Any:
    """What was said once of a setting, as its type; of `set`, all that was said."""
    flag = setting.flag if setting else f"--{name}"
    if len(said) > 1 and name != "set":
        several = setting is not None and setting.takes_several
        hint = f"give all its values behind one: {flag} A B" if several else "give it once"
        raise InputError("is given twice", field=flag, hint=hint)
    value = said if name == "set" else said[0]
    words = value if isinstance(value, list) else [value]
    if not all(str(word).strip() for word in words):
        raise InputError(
            "an empty word", field=flag, hint="leave it out, or set the variable that it is of"
        )
    if setting is None:
        return value
    try:
        return msgspec.convert(value, setting.kind, strict=False, dec_hook=to_path)
    except (msgspec.ValidationError, UnicodeError):
        what = f"'{' '.join(map(str, words))}' is not {setting.wanted}"
        raise InputError(what, field=flag, hint=f"give {setting.wanted}") from None


def _configured(command: str, kind: type, given: dict[str, Any]) -> Any:
    """The settings of a command, those that are given laid over those that are not."""
    settings = settings_of(kind)
    required = [setting for setting in settings.values() if setting.is_required]
    if command in RESUMABLE and _goes_on(given.get("resume"), output_folder(command, given)):
        from disp_llm.runs.settings import stored_config

        config = stored_config(output_folder(command, given), kind)
    else:
        config = kind(**{setting.name: "" for setting in required})
        if "recipe" in settings:
            config = apply_recipe(config, load_recipe(given.get("recipe", config.recipe)))
    if "config" in given:
        config = apply_recipe(config, load_settings(Path(given["config"])), field="config")
    for assignment in given.get("set", ()):
        config = apply_recipe(config, _table(assignment), field="set")
    for name, value in given.items():
        if name in settings:
            config = with_value(config, settings[name].path, value)
    if "revision" in given:
        config = dataclasses.replace(
            config, model=f"{config.model.partition('@')[0]}@{given['revision']}"
        )
    for setting in required:
        if getattr(config, setting.name) == "":
            hint = f"see disp-llm {command} --help"
            raise InputError("is missing", field=setting.flag, hint=hint)
    return config


def _table(assignment: str) -> dict[str, Any]:
    """`learn.shift=3` as the tables of a TOML file; a value that is no TOML is a word."""
    place, equals, said = assignment.partition("=")
    if not (place and equals):
        raise InputError(f"'{assignment}'", field="set", hint="give one such as learn.steps=300")
    try:
        tables = tomllib.loads(f"value = {said}")
    except tomllib.TOMLDecodeError:
        tables = {"value": said}
    *groups, name = place.split(".")
    tables = {name: tables["value"]}
    for group in reversed(groups):
        tables = {group: tables}
    return tables


def output_folder(command: str, given: dict[str, Any]) -> Path:
    """The run folder that a command is asked to use."""
    return given.get("output_dir") or settings_of(command_of(command).config)["output_dir"].default


def _goes_on(resume: Any, folder: Path) -> bool:
    """Whether a run is resumed, whose settings the flags change."""
    return resume is True or (resume == "auto" and (folder / "config.toml").exists())


def _print(text: str) -> NoReturn:
    print(text)
    raise SystemExit(0)


def all_settings() -> dict[str, type]:
    """What every command can be asked; a package that is broken is told of and left out."""
    kinds: dict[str, type] = {}
    for name in command_names():
        try:
            kinds[name] = command_of(name).config
        except InputError as error:
            logger.warning("%s", error)
    return kinds


def _overview() -> str:
    """The commands, a line each."""
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


def program(arguments: list[str]) -> str:
    """`disp-llm prune`, or `disp-llm` where no command is named."""
    return " ".join(["disp-llm", *(name for name in arguments[:1] if name in command_names())])


def command_line() -> str:
    """How this process was started, without the folders of files: `config.toml` has these."""

    def shown(word: str) -> str:
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        return f"{flag}{equals}{name_of(value)}"

    return shlex.join(["disp-llm", *map(shown, sys.argv[1:])])
