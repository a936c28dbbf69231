"""Settings that are read only where others ask for it: declared beside the fields as `USES`, with
one check that nobody has given what nothing reads.

Given is what differs from the default, and from what a shipped recipe says.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass
from functools import reduce
from typing import Any

from disp_llm.config.errors import InputError
from disp_llm.config.recipes import (
    apply_recipe,
    load_recipe,
    recipe_names,
    setting_paths,
    with_value,
)


@dataclass(frozen=True)
class Use:
    """What makes a command read some of its settings."""

    settings: str
    """Their names, with spaces between."""
    when: Callable[[Any], Any]
    """Whether a configuration does."""
    what: str
    """What is wrong where it does not; `{0}` is the configuration."""
    instead: str = ""
    """What to do besides leaving them out."""


def require_used(config: Any) -> None:
    """Refuses a setting that was given although nothing reads it.

    Raises:
        InputError: naming the setting, and what would read it.
    """
    for use, part, path, _ in _unused(config):
        hint = "leave it out" + (f", or {use.instead}" if use.instead else "")
        raise InputError(use.what.format(part), field=path[-1], hint=hint)


def with_used(config: Any) -> Any:
    """A copy of a configuration in which what nothing reads has the value that nobody asked for."""
    for _, _, path, value in list(_unused(config)):
        config = with_value(config, path, value)
    return config


def unread(config: Any) -> set[str]:
    """Names of the settings that nothing reads, given or not."""
    unmet = (use for use, part in _uses(config) if not use.when(part))
    return {name for use in unmet for name in use.settings.split()}


def defaults(config: Any) -> Any:
    """A configuration of the same kind for which nothing was asked but what has no default."""
    needed = {
        entry.name: getattr(config, entry.name)
        for entry in dataclasses.fields(config)
        if entry.default is entry.default_factory is MISSING
    }
    return type(config)(**needed)


def usual_settings(config: Any) -> Any:
    """The settings that nobody asked for: defaults, under those of the recipe where it is one of
    ours."""
    usual, recipe = defaults(config), getattr(config, "recipe", "")
    return apply_recipe(usual, load_recipe(recipe)) if recipe in recipe_names() else usual


def _unused(config: Any) -> Iterator[tuple[Use, Any, tuple[str, ...], Any]]:
    """Settings that were given and are not read: what would read them, what they are part of, where
    they lie, and the value that nobody asked for."""
    paths = setting_paths(config)
    plain, usual = defaults(config), usual_settings(config)
    for use, part in _uses(config):
        if use.when(part):
            continue
        for path in map(paths.__getitem__, use.settings.split()):
            now, default, value = (reduce(getattr, path, of) for of in (config, plain, usual))
            if now not in (default, value):
                yield use, part, path, value


def _uses(config: Any) -> Iterator[tuple[Use, Any]]:
    """What a configuration and those that it holds declare."""
    yield from ((use, config) for use in getattr(config, "USES", ()))
    for entry in dataclasses.fields(config):
        part = getattr(config, entry.name)
        if dataclasses.is_dataclass(part):
            yield from _uses(part)
