"""Rows of the table of architectures that other packages add by entry points."""

from importlib.metadata import EntryPoint, entry_points

from disp_llm.config.errors import InputError
from disp_llm.models.family import Family

PLUGINS = "disp_llm.architectures"
"""The group of entry points through which another package adds rows: the name of each is a
`model_type`, its object a `Family`."""


def plugins() -> tuple[EntryPoint, ...]:
    """All of them; the name of each is a `model_type`."""
    return tuple(entry_points(group=PLUGINS))


def loaded(entry: EntryPoint) -> Family:
    """The row that an entry point names.

    Raises:
        InputError: it cannot be loaded, or is no row.
    """
    try:
        family = entry.load()
    except (ImportError, AttributeError) as error:
        raise _bad_row(entry, f"cannot be loaded ({error})") from error
    if not isinstance(family, Family):
        raise _bad_row(entry, f"is no Family but {family!r}")
    return family


def _bad_row(entry: EntryPoint, why: str) -> InputError:
    return InputError(
        f"the row of '{entry.name}', {entry.value}, {why}",
        field="model",
        hint="repair or remove the package that adds it",
    )
