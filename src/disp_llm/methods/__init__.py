"""Every way to choose masks, one file each: `METHOD` with its name, title, reference and function.

Others use `method_named`, `all_methods` and `register`; `baselines` holds what does more than drop
dimensions, `parts` what several methods share. docs/extend.md explains how to add one.
"""

import importlib
from importlib.metadata import entry_points

from disp_llm.config.errors import InputError, nearest
from disp_llm.config.names import (
    PLUGINS,
    STRUCTURES,
    compared_methods,
    mask_methods,
    own_methods,
    registered_methods,
)
from disp_llm.methods.baselines import baseline_named
from disp_llm.methods.parts.method import Method

_registered: dict[str, Method] = {}


def method_named(name: str) -> Method:
    """The method of that name: ours, of an installed package, or registered in this process.

    Raises:
        InputError: there is none, or what an installed package offers is no method.
    """
    if name in own_methods():
        return importlib.import_module(f"{__name__}.{name}").METHOD
    for entry in entry_points(group=PLUGINS, name=name):
        found = entry.load()
        if not isinstance(found, Method) or found.name != name:
            raise InputError(
                f"the entry point '{name}' ({entry.value}) is no method of that name",
                field="method",
                hint="correct that package as docs/extend.md explains, or uninstall it",
            )
        return found
    if name in _registered:
        return _registered[name]
    known = list(mask_methods())
    raise InputError(
        f"no method '{name}'{nearest(name, known)}",
        field="method",
        hint=f"use one of {', '.join(known)}",
    )


def start_named(name: str) -> Method:
    """What learning begins at the scores of: a method, or what a baseline keeps.

    Raises:
        InputError: there is none of that name.
    """
    if name in STRUCTURES:
        return baseline_named(name).start
    return method_named(name)


def all_methods() -> dict[str, Method]:
    """All methods by name: ours first, then those of installed packages, then registered ones.

    Raises:
        InputError: what an installed package offers is no method.
    """
    return {name: method_named(name) for name in mask_methods()}


def register(method: Method) -> None:
    """Makes a method known by its name in this process; one that was registered under the same name
    before is replaced.

    Raises:
        InputError: the name is taken by a method or baseline of this or an installed package.
    """
    if method.name in compared_methods() and method.name not in _registered:
        raise InputError(
            f"there is a method '{method.name}' already", field="method", hint="use another name"
        )
    _registered[method.name] = method
    if method.name not in registered_methods:
        registered_methods.append(method.name)
