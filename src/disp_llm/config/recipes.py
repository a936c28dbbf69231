"""Settings as plain tables: recipes, files, flags and options of Python, laid one over another and
made a configuration at the end."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from disp_llm.config.errors import InputError, nearest
from disp_llm.config.schema import format_mismatch, read_toml, require_known, to_path
from disp_llm.config.settings import settings_of

SHIPPED = Path(__file__).parent / "shipped"
"""Recipes, suites and mixtures of texts that the package has."""

BOUND = re.compile(r"expected (?:int|float) ([<>]=?) (.+)")
BOUNDS = {"<": "below", "<=": "of at most", ">": "above", ">=": "of at least"}
"""What a schema says of a number that is out of range, and how messages say it."""

OF_ONE_RUN = ("model", "output_dir", "resume", "anyway")
"""Settings that the `config.toml` of a run has and another run does not repeat."""


def resolved(config: Any) -> dict[str, Any]:
    """A configuration as plain TOML values; paths become text."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, tuple | list):
            return [plain(inner) for inner in value]
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(config))


def flat(tables: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of tables with its place: `learn.steps`."""
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def configured(tables: dict[str, Any], kind: type) -> Any:
    """The configuration that tables say, each value of the type and range that its field declares.

    Raises:
        InputError: naming the setting.
    """
    try:
        return msgspec.convert(tables, kind, dec_hook=to_path)
    except msgspec.ValidationError as error:
        place, _, what = format_mismatch(error).partition(": ")
        place, _, inside = place.partition("[")
        places = {".".join(one.path): one for one in settings_of(kind).values()}
        setting, hint = places.get(place), "correct it"
        if setting is not None:
            listed = "a list, each " if setting.takes_several and not inside else ""
            hint = f"give {listed}{setting.wanted}"
            if bound := BOUND.fullmatch(what):
                limit = bound[2].removesuffix(".0")
                what, hint = "out of range", f"{hint} {BOUNDS[bound[1]]} {limit}"
        raise InputError(what, field=place.split(".")[-1], hint=hint) from error


def merged(kind: type, below: dict[str, Any], tables: dict[str, Any], field: str) -> dict[str, Any]:
    """Tables laid over others. `field` names where they come from, for a key that is unknown."""
    require_known(tables, kind, field)
    return _over(below, tables)


def _over(below: dict[str, Any], tables: dict[str, Any]) -> dict[str, Any]:
    whole = dict(below)
    for key, value in tables.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        whole[key] = _over(below[key], value) if both else value
    return whole


def nested(path: tuple[str, ...], value: Any) -> Any:
    """A value at the end of a path of tables."""
    for name in reversed(path):
        value = {name: value}
    return value


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def load_recipe(name: str, field: str = "recipe") -> dict[str, Any]:
    """The tables of a shipped recipe, over those of the one that it names as its `base`.

    Raises:
        InputError: no such recipe.
    """
    if name not in recipe_names():
        raise InputError(
            f"no recipe '{name}'" + nearest(str(name), recipe_names()),
            field=field,
            hint=f"use one of {', '.join(recipe_names())}, or name a file as `config`",
        )
    return _on_its_base(read_toml(SHIPPED / f"{name}.toml", field, "correct the file"))


def load_settings(path: Path) -> dict[str, Any]:
    """The tables of a file of settings, over those of the recipe that it names as its `base`; of
    the `config.toml` of a run, what another run can repeat."""
    tables = read_toml(path, "config", "correct the file")
    return _on_its_base({key: said for key, said in tables.items() if key not in OF_ONE_RUN})


def _on_its_base(tables: dict[str, Any]) -> dict[str, Any]:
    base = tables.pop("base", None)
    return tables if base is None else _over(load_recipe(base, "config"), tables)


def apply_recipe(config: Any, tables: dict[str, Any]) -> Any:
    """A copy of a configuration with the values of a recipe's tables."""
    kind = type(config)
    return configured(merged(kind, resolved(config), tables, "recipe"), kind)


def with_settings(config: Any, settings: dict[str, Any]) -> Any:
    """A copy of a configuration with some settings changed, each by its own name, as flags have it:
    `with_settings(config, {"steps": 20})` changes `config.learn.steps`. A single value may stand
    for a list of it, also in the configuration.

    Raises:
        InputError: a setting that no field has.
    """
    kind, tables, known = type(config), resolved(config), settings_of(type(config))
    given = {name: setting.of(config) for name, setting in known.items()} | settings
    for name, value in given.items():
        if name not in known:
            raise InputError(
                f"no such setting{nearest(name, list(known))}", field=name, hint="see docs/api.md"
            )
        one = known[name].takes_several and not isinstance(value, list | tuple)
        tables = _over(tables, nested(known[name].path, [value] if one else value))
    return configured(tables, kind)
