"""The least that every command takes, and the settings of all of them."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from disp_llm.cli.parsing import all_settings
from disp_llm.config.settings import settings_of

LEAST = {
    "prune": ["prune", "m"],
    "export": ["export", "run", "--keep", "0.5"],
    "recover": ["recover", "f"],
    "compare": ["compare", "m", "--text", "t"],
    "report": ["report", "run"],
    "eval": ["eval", "m"],
    "doctor": ["doctor", "m"],
    "bench": ["bench", "m", "--against", "m"],
    "generate": ["generate", "m", "p"],
    "chat": ["chat", "m"],
    "convert": ["convert", "f", "--to", "int4", "--output-dir", "new"],
    "push": ["push", "f", "a/b"],
    "verify": ["verify", "f"],
}


IN_PLACE = {"fit": "keep"}
"""Settings, each with the one whose place it takes."""


def least(command: str, setting: str = "") -> list[str]:
    """The least command line, for one more flag."""
    words = LEAST[command]
    flag = f"--{IN_PLACE.get(setting, setting).replace('_', '-')}"
    place = words.index(flag) if flag in words else len(words)
    return [*words[:place], *words[place + 2 :]]


def setting_paths(config: Any) -> dict[str, tuple[str, ...]]:
    """Where each setting of a configuration lies."""
    return {name: setting.path for name, setting in settings_of(type(config)).items()}


def declared() -> Iterator[tuple[str, str, Any]]:
    """Command, setting and its type, of every setting."""
    for command, config in all_settings().items():
        yield from ((command, name, kind) for name, kind in _declared(config))


def _declared(config: type) -> Iterator[tuple[str, Any]]:
    hints, plain = get_type_hints(config, include_extras=True), get_type_hints(config)
    for name in (entry.name for entry in dataclasses.fields(config)):
        if dataclasses.is_dataclass(plain[name]):
            yield from _declared(plain[name])
        else:
            yield name, hints[name]


def leaves(kind: Any, about: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The plain types that a type is made of, and what is said about each."""
    if get_origin(kind) is Annotated:
        inner, *more = get_args(kind)
        yield from leaves(inner, (*about, *more))
    elif kind in (int, float, str, bool, Path):
        yield kind, about
    else:
        for part in get_args(kind):
            if part is not Ellipsis:
                yield from leaves(part)
