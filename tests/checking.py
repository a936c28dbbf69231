"""beartype, without the tenth of the suite's CPU time that it took for functions inside others.

A function inside another is a new one whenever the outer one runs, and making the checks of its
types takes longer than the function does. So the first few of every such function are checked.
"""

from collections import Counter
from collections.abc import Callable

from beartype import beartype

CHECKED = 10
"""How many of the functions that one place of the source makes."""

_made: Counter[tuple[str, str]] = Counter()


def first_few(function: Callable) -> Callable:
    """What jaxtyping checks types with."""
    place = (function.__module__, function.__qualname__)
    if "<locals>" in function.__qualname__:
        _made[place] += 1
        if _made[place] > 2 * CHECKED:  # jaxtyping asks twice: for arguments, and for the result
            return function
    return beartype(function)
