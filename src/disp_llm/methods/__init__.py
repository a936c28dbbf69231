"""Ways to choose masks: `METHOD` in a file each, with its name, title, reference and function.

Others use `method_named` and `register`. Other packages add methods, as `disp_lab`
does; docs/extend.md explains how.
"""

import importlib

from disp_llm.config.errors import InputError
from disp_llm.config.methods import (
    OWN,
    Method,
    Reads,
    method_names,
    other_method,
    registered,
)

__all__ = ["OWN", "Method", "Reads", "method_named", "register"]


def method_named(name: str) -> Method:
    """The method of that name."""
    if name in OWN:
        return importlib.import_module(f"{__name__}.{name}").METHOD
    return other_method(name)


def register(method: Method) -> None:
    """Makes a method known by its name in this process; one that was registered under the same name
    before is replaced.

    Raises:
        InputError: the name is taken by this or an installed package.
    """
    if method.name in {*method_names()} - registered.keys():
        raise InputError(
            f"there is a method '{method.name}' already", field="method", hint="use another name"
        )
    registered[method.name] = method
