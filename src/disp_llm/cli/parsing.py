"""Arguments -> the configuration of a command.

Defaults < recipe, or the settings of the run that is resumed < flags. Nothing heavy is imported
here, so that help and usage errors come at once.
"""

import contextlib
import dataclasses
import io
import itertools
import logging
import operator
import shlex
import sys
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

import tyro

from disp_llm.cli.help import join_help
from disp_llm.cli.usage import usage_error
from disp_llm.config.bench import BenchConfig
from disp_llm.config.checks import require_alternatives
from disp_llm.config.convert import ConvertConfig, PushConfig
from disp_llm.config.doctor import DoctorConfig
from disp_llm.config.errors import InputError, nearest
from disp_llm.config.evaluate import EvalConfig
from disp_llm.config.export import ExportConfig
from disp_llm.config.plugins import Command, added, added_names
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recipes import apply_recipe, load_recipe
from disp_llm.config.recover import RecoverConfig
from disp_llm.config.report import ReportConfig
from disp_llm.config.verify import VerifyConfig
from disp_llm.runs.naming import HUB_NAME

logger = logging.getLogger(__name__)


def added_commands() -> dict[str, Command]:
    """What installed packages add; a package that is broken is told of and left out."""
    found: dict[str, Command] = {}
    for name in added_names("disp_llm.commands"):
        try:
            command = added("disp_llm.commands", name, Command, name)
        except InputError as error:
            logger.warning("%s", error)
        else:
            found |= {name: command} if command else {}
    return found


Config = (
    PruneConfig
    | ExportConfig
    | RecoverConfig
    | ReportConfig
    | EvalConfig
    | DoctorConfig
    | BenchConfig
    | ConvertConfig
    | PushConfig
    | VerifyConfig
)

ADDED = added_commands()

COMMANDS: dict[str, type[Any]] = {
    "prune": PruneConfig,
    "export": ExportConfig,
    "recover": RecoverConfig,
    "report": ReportConfig,
    "eval": EvalConfig,
    "doctor": DoctorConfig,
    "bench": BenchConfig,
    "convert": ConvertConfig,
    "push": PushConfig,
    "verify": VerifyConfig,
} | {name: command.config for name, command in ADDED.items()}
"""Every command by its name, and what it can be asked."""

RESUMABLE: dict[str, type[PruneConfig] | type[RecoverConfig]] = {
    "prune": PruneConfig,
    "recover": RecoverConfig,
}


def parse(arguments: list[str]) -> Config:
    """The configuration that the arguments ask for, checked.

    Raises:
        InputError: unknown or malformed arguments, an unknown recipe, no run to resume, or a value
            that no run can use.
        SystemExit: with code 0, after `--help` and `--version`.
    """
    if arguments == ["--version"]:
        print(f"disp-llm {version('disp-llm')}")
        raise SystemExit(0)
    require_command(arguments)
    require_once(arguments)
    arguments = _with_resume_value(arguments) or ["--help"]
    helps = bool({"-h", "--help"} & set(arguments))
    if helps and arguments[0] in COMMANDS:
        join_help(COMMANDS[arguments[0]])
    # A flag that a recipe or the run that goes on has set may be given again, or as `--no-…`; help
    # names the one that changes something.
    pairs = (tyro.conf.FlagCreatePairsOff,) if helps else ()
    subcommands = [
        Annotated[config, tyro.conf.subcommand(name, **_default(name, arguments))]
        for name, config in COMMANDS.items()
    ]
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            config: Config = tyro.cli(
                reduce(operator.or_, subcommands),
                prog="disp-llm",
                args=arguments,
                description="Makes Hugging Face decoder LLMs physically smaller.",
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, *pairs),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise usage_error(complaint.getvalue(), program(arguments)) from None
    require_alternatives(config, given_settings(arguments))
    config.validate()
    return config


def require_command(arguments: list[str]) -> None:
    """Refuses a first word that is no command, and names the nearest one.

    Raises:
        InputError: naming the word.
    """
    command = "".join(arguments[:1])
    if command and not command.startswith("-") and command not in COMMANDS:
        what = f"is no command{nearest(command, list(COMMANDS))}"
        raise InputError(what, field=command, hint="see disp-llm --help")


def require_once(arguments: list[str]) -> None:
    """Refuses a flag that is given twice, of which the parser would take the last, and empty words,
    which a shell makes of a variable that is not set.

    Raises:
        InputError: naming the flag.
    """
    given, command = given_settings(arguments), "".join(arguments[:1])
    kinds = settings(COMMANDS[command]) if command in COMMANDS else {}
    for name in given:
        if given.count(name) > 1 or f"no_{name}" in given:
            lists = get_origin(kinds.get(name)) is tuple
            flag = f"--{name.replace('_', '-')}"
            raise InputError(
                "is given twice",
                field=flag,
                hint=f"give all its values behind one: {flag} A B" if lists else "give it once",
            )
    for before, word in itertools.pairwise(["", *arguments]):
        flag, equals, value = word.partition("=")
        if not word.strip() or (equals and not value and flag.startswith("--")):
            named = flag if equals else before if before.startswith("--") else program(arguments)
            raise InputError(
                "an empty word", field=named, hint="leave it out, or set the variable that it is of"
            )


def given_settings(arguments: list[str]) -> list[str]:
    """The settings whose flags are given, as often as they are."""
    flags = (word[2:].partition("=")[0] for word in arguments if word.startswith("--"))
    return [flag.replace("-", "_") for flag in flags]


def settings(config: Any) -> dict[str, Any]:
    """The types of everything that a command can be asked, by name."""
    found: dict[str, Any] = {}
    hints = get_type_hints(config)
    for name in (entry.name for entry in dataclasses.fields(config)):
        inner = dataclasses.is_dataclass(hints[name])
        found |= settings(hints[name]) if inner else {name: hints[name]}
    return found


def _with_resume_value(arguments: list[str]) -> list[str]:
    """The arguments with the value that a bare `--resume` stands for."""
    spelt: list[str] = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        bare = argument == "--resume" and following not in ("auto", "True", "False")
        spelt += [argument, "True"] if bare else [argument]
    return spelt


def program(arguments: list[str]) -> str:
    """`disp-llm prune`, or `disp-llm` where no command is named."""
    return " ".join(["disp-llm", *(name for name in arguments[:1] if name in COMMANDS)])


def command_line() -> str:
    """How this process was started, for provenance: a line that a shell takes, in which what lies
    here cannot be mistaken for a name on the hub (`./org/name`)."""

    def said(word: str) -> str:
        return f"./{word}" if HUB_NAME.fullmatch(word) and Path(word).exists() else word

    return shlex.join(["disp-llm", *map(said, sys.argv[1:])])


def output_folder(arguments: list[str]) -> Path:
    """The run folder that a resumable command is asked to use."""
    default = RESUMABLE[arguments[0]].output_dir
    return Path(value_of("--output-dir", arguments) or default)


def value_of(flag: str, arguments: list[str]) -> str | None:
    """The value of a flag, read before the arguments are parsed."""
    found = None
    for argument, following in itertools.pairwise([*arguments, ""]):
        name, given, value = argument.partition("=")
        if name.replace("_", "-") == flag:
            found = value if given else following
    return found or None


def _default(name: str, arguments: list[str]) -> dict[str, Any]:
    """The configuration that the flags of this command change, as tyro's `default`; nothing where
    it is the one that the fields themselves give."""
    if arguments[:1] != [name]:
        return {}
    if name in RESUMABLE and _goes_on(arguments):
        from disp_llm.runs.settings import stored_config

        return {"default": stored_config(output_folder(arguments), RESUMABLE[name])}
    if name == "prune":
        plain = PruneConfig(model=tyro.MISSING)
        recipe = value_of("--recipe", arguments) or plain.recipe
        return {"default": apply_recipe(plain, load_recipe(recipe))}
    return {}


def _goes_on(arguments: list[str]) -> bool:
    """Whether a run is resumed, whose settings the flags change."""
    resume = value_of("--resume", arguments)
    return resume == "True" or (
        resume == "auto" and (output_folder(arguments) / "config.toml").exists()
    )
