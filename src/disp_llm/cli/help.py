"""What `--help` says of a flag: the docstring of its field, as a paragraph.

tyro 1.0 joins the lines of a docstring only where they are not indented, as those of a field always
are: a terminal narrower than our sources would show every line of them broken in two.
"""

import ast
import inspect
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from textwrap import dedent
from typing import Annotated

import tyro


def join_help(config: type) -> None:
    """Tells tyro what to say of the fields of a settings class, and of those that it holds: the
    docstring as one line, which it wraps to the terminal, and no default where that is nothing."""
    told = _docstrings(config)
    for field in fields(config):
        kind = config.__annotations__[field.name]
        said = " ".join(told.get(field.name, "").split()) or None
        nothing = "" if field.default in ("", (), MISSING) else None
        about = tyro.conf.arg(help=said, help_behavior_hint=nothing)
        config.__annotations__[field.name] = Annotated[kind, about]
        if isinstance(kind, type) and is_dataclass(kind):
            join_help(kind)


def _docstrings(config: type) -> dict[str, str]:
    """The string after each field of a class, by name."""
    (definition,) = ast.parse(dedent(inspect.getsource(config))).body
    assert isinstance(definition, ast.ClassDef)
    told = {}
    for statement, following in pairwise(definition.body):
        match statement, following:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                told[name] = text
    return told
