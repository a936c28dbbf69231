"""Types and shapes of arguments and results, checked while the tests run, without the third of the
suite's CPU time that this took.

A function inside another is a new one whenever the outer one runs, and making the checks of its
types takes longer than the function does. So the first few of every such function are checked. And
jaxtyping compares shapes of all arguments and of the result, also where there are none; beartype
alone checks the types of such a function in a tenth of the time.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial
from types import FunctionType
from typing import Any

import jaxtyping
from beartype import beartype

CHECKED = 10
"""How many of the functions that one place of the source makes."""

_made: Counter[tuple[str, str]] = Counter()
_jaxtyped = jaxtyping.jaxtyped


def first_few(function: Callable, uses: int = 2) -> Callable:
    """What checks types; jaxtyping asks twice: for arguments, and for the result."""
    place = (function.__module__, function.__qualname__)
    if "<locals>" in function.__qualname__:
        _made[place] += 1
        if _made[place] > uses * CHECKED:
            return function
    return beartype(function)


def _has_no_shapes(function: Any) -> bool:
    """Whether every type is known already and none of them is that of an array."""
    if not isinstance(function, FunctionType):
        return False
    types = function.__annotations__.values()
    return not any(isinstance(kind, str) or "jaxtyping" in repr(kind) for kind in types)


def jaxtyped(checked: Any = None, *, typechecker: Callable) -> Any:
    """jaxtyping's decorator of every function and class, where there are shapes."""
    if checked is None:
        return partial(jaxtyped, typechecker=typechecker)
    if _has_no_shapes(checked):
        return first_few(checked, uses=1)
    if is_dataclass(checked) and _has_no_shapes(vars(checked).get("__init__")):
        checked.__init__ = first_few(checked.__init__, uses=1)
        return checked
    return _jaxtyped(checked, typechecker=typechecker)


jaxtyping.jaxtyped = jaxtyped
