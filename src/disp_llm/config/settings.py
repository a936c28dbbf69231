"""The settings of a command, read from the fields of its dataclass and of the groups that it holds.

A field is declared once: its type has the range, the string below it is what help says.
"""

import ast
import dataclasses
import functools
import inspect
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from functools import reduce
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any, Literal, get_args, get_origin, get_type_hints

POSITIONAL = "positional"
"""Annotates a field that is given without a flag: `model: Annotated[Word, POSITIONAL]`."""

DESCRIBED = {
    str: ("NAME", "a word"),
    Path: ("PATH", "a path"),
    int: ("N", "a whole number"),
    float: ("X", "a number"),
    bool: ("", "true or false"),
}
"""What help and messages call a value of each type."""


@dataclass(frozen=True)
class Setting:
    """What a command can be asked."""

    path: tuple[str, ...]
    """Names of the groups that hold it, then its own."""
    kind: Any
    default: Any
    sentence: str
    is_positional: bool

    @property
    def name(self) -> str:
        return self.path[-1]

    def of(self, config: Any) -> Any:
        """Its value in a configuration."""
        return reduce(getattr, self.path, config)

    @property
    def flag(self) -> str:
        """`--eval-text`, or `MODEL` where it has no flag."""
        name = self.name.rstrip("_").replace("_", "-")  # `for` is a word of Python's
        return name.upper() if self.is_positional else f"--{name}"

    @property
    def takes_several(self) -> bool:
        return get_origin(self.kind) is tuple

    @property
    def is_required(self) -> bool:
        return self.default is MISSING

    @property
    def is_switch_too(self) -> bool:
        """Whether its flag may stand without a value."""
        return bool in get_args(self.kind)

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it takes; none where it takes any."""
        kinds = [self._one, *get_args(self._one)]
        return next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())

    @property
    def wanted(self) -> str:
        """What a message says that it takes."""
        return f"one of {', '.join(self.choices)}" if self.choices else self.described[1]

    @property
    def _one(self) -> Any:
        """The type of one value of it."""
        return get_args(self.kind)[0] if self.takes_several else self.kind

    @property
    def described(self) -> tuple[str, str]:
        """What help and messages call its value."""
        if self._one == float | str:
            return "SIZE", "a size"
        kinds = {self._one, *get_args(self._one)}
        return next((said for kind, said in DESCRIBED.items() if kind in kinds), DESCRIBED[str])


@functools.cache
def settings_of(config: type) -> dict[str, Setting]:
    """The settings of a command by their own names, which are unique in it."""
    return {setting.name: setting for setting in _settings(config, config, ())}


def _settings(kind: type, defaults: Any, above: tuple[str, ...]) -> Iterator[Setting]:
    """Of one dataclass; `defaults` is the class itself or the group as its command makes it."""
    hints, plain = get_type_hints(kind, include_extras=True), get_type_hints(kind)
    told = _sentences(kind)
    for field in dataclasses.fields(kind):
        declared, place = hints[field.name], (*above, field.name)
        if dataclasses.is_dataclass(declared):
            assert isinstance(declared, type)
            made = field.default_factory
            group = getattr(defaults, field.name) if made is MISSING else made()
            yield from _settings(declared, group, place)
            continue
        is_own = isinstance(defaults, type)
        default = field.default if is_own else getattr(defaults, field.name)
        sentence = told.get(field.name, "")
        yield Setting(place, plain[field.name], default, sentence, POSITIONAL in get_args(declared))


def _sentences(config: type) -> dict[str, str]:
    """The string below each field of a class and of those that it extends, in one line."""
    told = {}
    for kind in reversed(config.__mro__[:-1]):
        (definition,) = ast.parse(dedent(inspect.getsource(kind))).body
        assert isinstance(definition, ast.ClassDef)
        for statement, following in pairwise(definition.body):
            match statement, following:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    told[name] = " ".join(text.split())
    return told
