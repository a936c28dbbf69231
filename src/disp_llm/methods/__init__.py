"""Ways to choose masks: each file defines a `METHOD` with its name, title, reference and function.

Other packages use `method_named` and `register`. They can also add methods, as `disp_lab` does;
docs/extend.md explains how.
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
    """Returns the method of that name."""
    if name in OWN:
        return importlib.import_module(f"{__name__}.{name}").METHOD
    return other_method(name)


def register(method: Method) -> None:
    """Registers a method by its name in this process. It replaces one registered before under the
    same name.

    Raises:
        InputError: this package or an installed one already uses the name.
    """
    if method.name in {*method_names()} - registered.keys():
        raise InputError(
            f"there is a method '{method.name}' already", field="method", hint="use another name"
        )
    registered[method.name] = method
