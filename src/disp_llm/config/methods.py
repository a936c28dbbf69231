"""What a method declares about itself, and which there are: ours, those of installed packages, and
those that this process has registered. To know their names, none of them is imported."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from disp_llm.config.errors import InputError, nearest
from disp_llm.config.names import Site
from disp_llm.config.plugins import added, added_names

METHODS = "disp_llm.methods"
"""Group of entry points."""


@dataclass(frozen=True)
class Reads:
    """Which settings a method reads; others are refused."""

    calibration: bool = True
    """Of calibration sequences."""
    gradients: bool = False
    """Of a backward pass."""
    steps: bool = False
    """Of steps on learning windows."""
    learning: bool = False
    """Of what the method `learned` learns, and how."""


@dataclass(frozen=True)
class Method:
    """A way to choose which entries are kept."""

    name: str
    """What `method` calls it in settings and results: the name of its file or entry point."""
    title: str
    """What readers know it as."""
    reference: str
    """The paper: authors, title, where it can be found."""
    choose: Callable[[Any], Any]
    """PruningProblem -> Selection: gives every entry an importance; those with the highest are
    kept, as many as fit the size."""
    reads: Reads = Reads()
    """Which settings it reads."""
    sites: tuple[Site, ...] = ()
    """Where it prunes entries, unless the setting `sites` says otherwise. () = MLP channels and KV
    heads; where an architecture cannot lose heads, the five sites of the paper."""
    drops_branches: bool = False
    """Whether it gives whole branches an importance, where they are sites."""
    knows_experts: bool = False
    """Whether it can prune mixtures of experts."""
    reads_weights: bool = True
    """Whether it looks at the weights themselves, and not only at what the model computes."""
    one_size: bool = False
    """Whether its selection serves one size only."""
    every_site: bool = False
    """Whether it has to prune at each of its sites."""


OWN = {
    "learned": Reads(gradients=True, steps=True, learning=True),
    "fisher": Reads(gradients=True),
}
"""The methods of this package: what they read is known without importing them."""

registered: dict[str, Method] = {}
"""What `disp_llm.methods.register` was given in this process, by name."""


def method_names() -> tuple[str, ...]:
    """Ours first, then those of other packages, then registered ones."""
    return tuple(dict.fromkeys([*OWN, *added_names(METHODS), *registered]))


def other_method(name: str) -> Method:
    """A method that is not ours.

    Raises:
        InputError: there is none, or what an installed package adds is no method of that name.
    """
    found = added(METHODS, name, Method, "method") or registered.get(name)
    if found is None:
        known = list(method_names())
        raise InputError(
            f"no method '{name}'{nearest(name, known)}",
            field="method",
            hint=f"use one of {', '.join(known)}",
        )
    if found.name != name:
        raise InputError(
            f"the entry point '{name}' is a method that calls itself '{found.name}'",
            field="method",
            hint="correct or uninstall the package that adds it",
        )
    return found


def reads_of(name: str) -> Reads:
    """What a method reads; one that is not ours is imported to say so."""
    return OWN[name] if name in OWN else other_method(name).reads
