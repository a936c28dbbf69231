"""Settings that are read only where others ask for it, or that exclude each other: declared beside
the fields as `USES`, with one check that nobody has given what nothing reads.

Given is what differs from the default, and from what a shipped recipe says.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from disp_llm.config.errors import InputError
from disp_llm.config.recipes import apply_recipe, configured, load_recipe, recipe_names, resolved
from disp_llm.config.settings import Setting, settings_of


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


def not_with(other: str, settings: str, instead: str = "") -> Use:
    """Settings that are not read where another one is given."""
    what = f"given together with `{other}`"
    return Use(settings, lambda config: not getattr(config, other), what, instead)


def check_settings(config: Any) -> None:
    """Refuses values that the types of the fields do not allow, words that no JSON or TOML file can
    hold, and settings that nothing reads.

    Raises:
        InputError: naming the setting.
    """
    configured(resolved(config), type(config))
    for setting in settings_of(type(config)).values():
        try:
            json.dumps(setting.of(config), default=str, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            said, hint = f"{error.object} is not UTF-8", "rename it, or name a link to it"
            raise InputError(said, field=setting.name, hint=hint) from None
    for use, part, setting, _ in _unused(config):
        hint = "leave it out" + (f", or {use.instead}" if use.instead else "")
        raise InputError(use.what.format(part), field=setting.name, hint=hint)


def with_used(config: Any) -> Any:
    """A copy of a configuration in which what nothing reads has the value that nobody asked for."""
    for _, _, setting, value in list(_unused(config)):
        config = _replaced(config, setting.path, value)
    return config


def _replaced(config: Any, path: tuple[str, ...], value: Any) -> Any:
    name, *inside = path
    value = _replaced(getattr(config, name), tuple(inside), value) if inside else value
    return dataclasses.replace(config, **{name: value})


def unread(config: Any) -> set[str]:
    """Names of the settings that nothing reads, given or not."""
    unmet = (use for use, part in _uses(config) if not use.when(part))
    return {name for use in unmet for name in use.settings.split()}


def usual_settings(config: Any) -> Any:
    """The settings that nobody asked for: defaults, under those of the recipe."""
    settings = settings_of(type(config)).values()
    usual = type(config)(**{one.name: one.of(config) for one in settings if one.is_required})
    recipe = getattr(config, "recipe", "")
    return apply_recipe(usual, load_recipe(recipe)) if recipe in recipe_names() else usual


def _unused(config: Any) -> Iterator[tuple[Use, Any, Setting, Any]]:
    """Settings that were given and are not read: what would read them, what they are part of, and
    the value that nobody asked for."""
    settings, usual = settings_of(type(config)), usual_settings(config)
    for use, part in _uses(config):
        if use.when(part):
            continue
        for setting in map(settings.__getitem__, use.settings.split()):
            if setting.of(config) not in (setting.default, setting.of(usual)):
                yield use, part, setting, setting.of(usual)


def _uses(config: Any) -> Iterator[tuple[Use, Any]]:
    """What a configuration and its groups declare."""
    yield from ((use, config) for use in getattr(config, "USES", ()))
    for entry in dataclasses.fields(config):
        part = getattr(config, entry.name)
        if dataclasses.is_dataclass(part):
            yield from _uses(part)
