"""Random command lines: of every command, with values of every type for every flag, right and
wrong ones, as its dataclass declares them."""

import types
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from disp_llm.cli.parsing import all_settings
from disp_llm.config.settings import Setting, settings_of

Flags = dict[str, list[str]]

READS = "--context 32 --windows 2 --dtype float32 --device cpu"
CALIBRATES = "--calibration-sequences 2 --calibration-length 32"
PLACES = (
    *("new", "deep/er/new", "docs", "docs/notes", "docs/.x.tmp", "linked", "linked/own", "run"),
    *(
        "run/keep-0.5",
        "recovered",
        "comparison",
        "docs/report.html",
        "report.html",
        "run/result.json",
    ),
    *("run/keep-0.5/model.safetensors", "text.txt", "model", "nope", "new.png", "new.html", "."),
)
"""What a setting that is a path may name."""

SMALL: dict[str, str] = {
    "prune": f"--text text.txt --keep 0.5 --steps 4 --length 32 --rounds 0 "
    f"--batch 1 --least-cut 0 --output-dir new {CALIBRATES} {READS}",
    "export": "--keep 0.6 --no-measure --device cpu",
    "recover": f"--text text.txt --tokens 128 --length 32 --batch 1 --output-dir new {READS}",
    "compare": f"--text text.txt --methods magnitude random --keep 0.5 --rounds 0 --length 32 "
    f"--steps 2 --batch 1 --output-dir new {CALIBRATES} {READS}",
    "report": "--output new.html",
    "eval": f"--text text.txt {READS}",
    "doctor": "--device cpu",
    "bench": "--against model --length 8 --batch 1 --rounds 2 --context 8 --dtype float32 "
    "--device cpu",
    "generate": "--max-new-tokens 4 --device cpu",
    "convert": "--to int8 --output-dir new",
    "push": "",
    "verify": "",
}
"""Flags with which a command takes a second."""

POSITIONAL: dict[str, tuple[str, ...]] = {
    "prune": ("model", "model2", "run/keep-0.5"),
    "export": ("run", "recovered", "comparison"),
    "recover": ("run/keep-0.5", "model", "recovered/model"),
    "compare": ("model", "model2"),
    "report": ("run", "recovered", "comparison", "run recovered"),
    "eval": ("run/keep-0.5", "model", "recovered/model"),
    "doctor": ("model", "run/keep-0.5"),
    "bench": ("run/keep-0.5",),
    "generate": ("run/keep-0.5 Line", "model Line"),
    "convert": ("run/keep-0.5", "recovered/model", "model"),
    "push": ("run/keep-0.5 x/y", "docs x/y"),
    "verify": ("run", "run/keep-0.5", "recovered", "recovered/model", "comparison"),
}

WEIGHTS = {"prune": 6, "recover": 4, "compare": 2, "export": 3, "bench": 0.15, "push": 0.5}
"""How often a command comes, relative to the others."""

INTERACTIVE = {"chat"}
"""Commands that wait for somebody to type."""

SLOW = {"tasks", "shots", "compile", "minutes", "track", "self_tokens"}
"""Settings that take minutes, the network or what is not installed."""

INTEGERS = ("1", "2", "3", "4", "8", "32", "0", "-1", "9" * 23, "x", "")
FLOATS = ("0.5", "0.9", "1", "0", "2", "-0.5", "nan", "inf", "1e308", "1e-308", "x", "")
WORDS = (
    "",
    "x",
    "learned",
    "ü ñ",
    "a\nb",
    "\x1b[2J",
    "../x",
    "self",
    "cpu",
    "cuda:9",
    "5GB",
    "magnitude",
)


def random_settings(command: str) -> list[Setting]:
    """Every setting of a command that is a flag."""
    told = settings_of(all_settings()[command]).values()
    return [one for one in told if not one.is_positional and one.name not in SLOW]


def values(kind: Any, random: Random) -> list[str]:
    """Words for a setting of a type: such as a user would give, and others."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return values(inner[0], random)
    if origin is Literal:
        return [str(random.choice([*inner, "x"]))]
    if origin in (Union, types.UnionType):
        return values(random.choice([one for one in inner if one is not type(None)]), random)
    if origin is tuple:
        return [word for _ in range(random.randint(1, 2)) for word in values(inner[0], random)]
    if kind is bool:
        return []
    if kind is int:
        return [random.choice(INTEGERS)]
    if kind is float:
        return [random.choice(FLOATS)]
    return [random.choice(PLACES if kind is Path else WORDS)]


def base(command: str, random: Random) -> tuple[list[str], Flags]:
    """A line that would run: what stands in front, and its flags."""
    positional = random.choice(POSITIONAL[command]).split()
    flags: Flags = {}
    for word in SMALL[command].split():
        if word.startswith("--"):
            flags[word] = []
        else:
            flags[next(reversed(flags))].append(word)
    return [command, *positional], flags


def words(front: list[str], flags: Flags) -> list[str]:
    """The line in one list."""
    return [*front, *(word for flag, given in flags.items() for word in (flag, *given))]


def random_line(random: Random) -> list[str]:
    """Any command, with up to three flags changed and, at times, another thing to work on."""
    names = [name for name in all_settings() if name not in INTERACTIVE]
    command = random.choices(names, [WEIGHTS.get(name, 1) for name in names])[0]
    front, flags = base(command, random)
    settings = random_settings(command)
    for flag in ("--output-dir", "--output"):
        if flag in flags and random.random() < 0.5:
            flags[flag] = [random.choice(PLACES)]
    for _ in range(random.choice((0, 0, 1, 1, 2, 3)) if settings else 0):
        setting = random.choice(settings)
        flags[setting.flag] = values(setting.kind, random)
    if random.random() < 0.1:
        front[1:2] = [random.choice(PLACES)]
    if random.random() < 0.2:
        flags["--json"] = []
    return words(front, flags)
