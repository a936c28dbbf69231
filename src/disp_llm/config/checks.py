"""What no command can use: values that their types do not allow, settings that nothing reads, and
those that exclude each other. The last two are declared beside the fields, as `USES`.
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from disp_llm.config.errors import InputError
from disp_llm.config.recipes import (
    apply_recipe,
    configured,
    load_recipe,
    recipe_names,
    resolved,
    with_settings,
)
from disp_llm.config.settings import Setting, settings_of


@dataclass(frozen=True)
class Use:
    """What has to hold where some settings are given. Given is what differs from the default, and
    from what a shipped recipe says."""

    settings: str
    """Their names, with spaces between."""
    when: Callable[[Any], Any]
    """Whether a configuration reads them."""
    what: str
    """What is wrong where it does not; `{0}` is the configuration."""
    instead: str = ""
    """What to do besides leaving them out."""


def not_with(other: str, settings: str, instead: str = "") -> Use:
    """Settings that are not read where another one is given."""
    what = f"given together with `{other}`"
    return Use(settings, lambda config: not getattr(config, other), what, instead)


def only_with(others: str, settings: str, what: str) -> Use:
    """Settings that are read only where one of some others is given."""
    names = others.split()
    instead = "give " + " or ".join(f"`{name}`" for name in names)
    return Use(settings, lambda config: any(getattr(config, name) for name in names), what, instead)


def check_settings(config: Any, named: Collection[str] = ()) -> None:
    """Refuses, before anything is loaded, what no command can use: of all settings, and what the
    `validate` of a group refuses.

    Args:
        named: settings that were asked for by name, which counts even if it is the default.

    Raises:
        InputError: naming the setting.
    """
    configured(resolved(config), type(config))
    for setting in settings_of(type(config)).values():
        value = setting.of(config)
        try:
            json.dumps(value, default=str, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            said, hint = f"{error.object} is not UTF-8", "rename it, or name a link to it"
            raise InputError(said, field=setting.name, hint=hint) from None
        if setting.takes_several and setting.choices and len(set(value)) < len(value):
            raise InputError("repeated", field=setting.name, hint="name each once")
    for use, group, setting, _ in _unused(config, named):
        hint = "leave it out" + (f", or {use.instead}" if use.instead else "")
        raise InputError(use.what.format(group), field=setting.name, hint=hint)
    for group in _groups(config):
        if hasattr(group, "validate"):
            group.validate()


def with_used(config: Any) -> Any:
    """A copy of a configuration in which what nothing reads has the value that nobody asked for."""
    return with_settings(config, {setting.name: usual for _, _, setting, usual in _unused(config)})


def unread(config: Any) -> set[str]:
    """Names of the settings that nothing reads, given or not."""
    return {name for use, _ in _unmet(config) for name in use.settings.split()}


def usual_settings(config: Any) -> Any:
    """The settings that nobody asked for: defaults, under those of the recipe."""
    settings = settings_of(type(config)).values()
    usual = type(config)(**{one.name: one.of(config) for one in settings if one.is_required})
    recipe = getattr(config, "recipe", "")
    return apply_recipe(usual, load_recipe(recipe)) if recipe in recipe_names() else usual


def _unused(config: Any, named: Collection[str] = ()) -> Iterator[tuple[Use, Any, Setting, Any]]:
    """Settings that were given and are not read: what would read them, the group that they are part
    of, and the value that nobody asked for."""
    settings, usual = settings_of(type(config)), usual_settings(config)
    for use, group in _unmet(config):
        for setting in map(settings.__getitem__, use.settings.split()):
            value = setting.of(config)
            asked = setting.name in named and value  # 0 turns off what is not read in any case
            if asked or value not in (setting.default, setting.of(usual)):
                yield use, group, setting, setting.of(usual)


def _unmet(config: Any) -> Iterator[tuple[Use, Any]]:
    """What does not hold of a configuration, and the group that declares it."""
    for group in _groups(config):
        yield from ((use, group) for use in getattr(group, "USES", ()) if not use.when(group))


def _groups(config: Any) -> Iterator[Any]:
    """A configuration, and the groups of settings that it holds."""
    yield config
    for entry in dataclasses.fields(config):
        if dataclasses.is_dataclass(group := getattr(config, entry.name)):
            yield from _groups(group)
