"""What installed packages add by entry points: methods, architectures, commands."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar

from disp_llm.config.errors import InputError

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Command:
    """A command of `disp-llm` that another package adds (group `disp_llm.commands`)."""

    config: type
    """What it can be asked: a dataclass, as those of `disp_llm.config`."""
    run: Callable[[Any], dict[str, Any]]
    """Does it; returns what `--json` prints."""


def added_names(group: str) -> tuple[str, ...]:
    """The names in a group; nothing is imported to say so."""
    return tuple(sorted({entry.name for entry in entry_points(group=group)}))


def added(group: str, name: str, kind: type[Kind], field: str) -> Kind | None:
    """What an installed package adds under a name; None where none does.

    Args:
        field: the setting that messages name.

    Raises:
        InputError: it cannot be loaded, or is of another kind.
    """
    for entry in entry_points(group=group, name=name):
        try:
            found = entry.load()
        except (ImportError, AttributeError) as error:
            raise _unusable(name, entry.value, f"cannot be loaded ({error})", field) from error
        if not isinstance(found, kind):
            raise _unusable(name, entry.value, f"is no {kind.__name__}", field)
        return found
    return None


def _unusable(name: str, value: str, why: str, field: str) -> InputError:
    hint = "correct or uninstall the package that adds it"
    return InputError(f"the entry point '{name}' ({value}) {why}", field=field, hint=hint)
