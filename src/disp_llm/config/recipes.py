"""Recipes: a named table of settings, laid under flags. Defaults < recipe < flags."""

import dataclasses
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from disp_llm.config.checks import require_alternatives
from disp_llm.config.errors import InputError, nearest
from disp_llm.config.schema import as_type, read_toml
from disp_llm.config.settings import settings_of


def resolved(config: Any) -> dict[str, Any]:
    """A configuration as plain TOML values; None never occurs, paths become text."""
    plain = dataclasses.asdict(config)

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(inner) for key, inner in value.items()}
        if isinstance(value, tuple | list):
            return [clean(inner) for inner in value]
        return str(value) if isinstance(value, Path) else value

    return clean(plain)


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    folder = resources.files("disp_llm.config") / "shipped"
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name: str) -> dict[str, Any]:
    """The tables of a shipped recipe, over those of the one that it names as its `base`.

    Raises:
        InputError: no such recipe.
    """
    if name in recipe_names():
        shipped = resources.files("disp_llm.config") / "shipped" / f"{name}.toml"
        return _on_its_base(tomllib.loads(shipped.read_text(encoding="utf-8")))
    raise InputError(
        f"no recipe '{name}'" + nearest(name, recipe_names()),
        field="recipe",
        hint=f"use one of {', '.join(recipe_names())}, or name a file as `config`",
    )


OF_ONE_RUN = ("model", "output_dir", "resume", "anyway")
"""Settings that the `config.toml` of a run has and another run does not repeat."""


def load_settings(path: Path) -> dict[str, Any]:
    """The tables of a file of settings, over those of the recipe that it names as its `base`; of
    the `config.toml` of a run, what another run can repeat."""
    tables = read_toml(path, "config", "correct the file")
    return _on_its_base({key: said for key, said in tables.items() if key not in OF_ONE_RUN})


def _on_its_base(tables: dict[str, Any]) -> dict[str, Any]:
    base = tables.pop("base", None)
    if base is None:
        return tables
    if base not in recipe_names():
        raise InputError(
            f"base '{base}' is no shipped recipe" + nearest(str(base), recipe_names()),
            field="config",
            hint=f"use one of {', '.join(recipe_names())}",
        )
    whole = load_recipe(base)
    for key, value in tables.items():
        below = whole.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        whole[key] = below | value if both else value
    return whole


def apply_recipe(config: Any, tables: dict[str, Any], path: str = "", field: str = "recipe") -> Any:
    """A copy of a configuration with the values of a recipe's tables.

    Args:
        path: of the tables inside a larger one, for messages.
        field: what messages name as the source of the values.

    Raises:
        InputError: a key that no field has, or a value of the wrong type.
    """
    known = {entry.name: getattr(config, entry.name) for entry in dataclasses.fields(config)}
    hints = get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for key, value in tables.items():
        if key not in known:
            raise InputError(
                f"unknown key '{path}{key}'" + nearest(key, list(known)),
                field=field,
                hint=f"use keys of {', '.join(known)}",
            )
        old = known[key]
        if isinstance(value, dict) and dataclasses.is_dataclass(old):
            changes[key] = apply_recipe(old, value, f"{path}{key}.", field)
        else:
            changes[key] = _as_declared(value, hints[key], field, path + key)
    return dataclasses.replace(config, **changes)


def _as_declared(value: Any, kind: Any, field: str, place: str = "") -> Any:
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    hint = f"use one of {', '.join(choices)}" if choices else "correct it"
    return as_type(value, kind, field=field, hint=hint, place=place)


def with_settings(config: Any, settings: dict[str, Any]) -> Any:
    """A copy of a configuration with some settings changed, each by its own name, as flags have it:
    `with_settings(config, {"steps": 20})` changes `config.learn.steps`.

    Raises:
        InputError: a setting that no field has, a value of the wrong type, or two settings of which
            one takes the other's place.
    """
    config, known = typed(config), settings_of(type(config))
    require_alternatives(config, settings)
    for name, value in settings.items():
        if name not in known:
            raise InputError(
                f"no such setting{nearest(name, list(known))}", field=name, hint="see docs/api.md"
            )
        config = with_value(config, known[name].path, value)
    return config


def with_value(config: Any, path: tuple[str, ...], value: Any) -> Any:
    """A copy of a configuration with another value at the end of a path."""
    name, *inside = path
    if inside:
        value = with_value(getattr(config, name), tuple(inside), value)
    else:
        value = _given(value, get_type_hints(type(config))[name], name)
    return dataclasses.replace(config, **{name: value})


def typed(config: Any) -> Any:
    """A copy of a configuration that a program has made, with every value of the type that its
    field declares: paths may have been given as text, and one value for a list of them."""
    for setting in settings_of(type(config)).values():
        config = with_value(config, setting.path, setting.of(config))
    return config


def _given(value: Any, kind: Any, field: str) -> Any:
    """What a program has given for a setting, as it is declared."""
    if value is None and type(None) not in get_args(kind):
        raise InputError("None is no value", field=field, hint="leave it out, or give one")
    if get_origin(kind) is tuple:
        value = list(value) if isinstance(value, list | tuple) else [value]
    return _as_declared(value, kind, field)
