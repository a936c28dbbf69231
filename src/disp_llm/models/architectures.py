"""Which row a model has of the table of architectures.

An architecture is one row of data and nothing else, in `architectures.toml`. The row is enough to
mask a model, to count what an entry of a mask costs, to cut the model and to load what was cut: no
other file names an architecture. Another package adds rows of its own by entry points or by
`register_architecture`, which takes wrappers too.
"""

import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from disp_llm.config.errors import InputError, nearest
from disp_llm.config.plugins import added, added_names
from disp_llm.models.family import Branch, Family, Wrapper, branch

_TABLE: dict[str, dict[str, Any]] = tomllib.loads(
    Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
)
_REASONS = _TABLE.pop("reasons")
_TOWERS = _TABLE.pop("wrappers")
_HEADS = _TABLE.pop("wrapper_heads")
ROW_OF = _TABLE.pop("wrapped")
"""Whose row language models have that exist inside of wrappers alone."""


def _rows() -> dict[str, Family]:
    """What is left of the table: each row with the columns of the one that it is like."""
    columns: dict[str, dict[str, Any]] = {}
    found: dict[str, Family] = {}
    for name, row in _TABLE.items():
        like, also = columns.get(row.pop("like", ""), {}), row.pop("also", "")
        for key in ("attention", "mlp", "mixture"):
            if key in row and "module" not in row[key]:
                row[key] = like[key] | row[key]
        columns[name] = like | row
        found |= dict.fromkeys((name, *also.split()), _family(columns[name]))
    return found


def _family(row: dict[str, Any]) -> Family:
    columns = dict(row)
    for key in ("attention", "mlp", "mixture"):
        if key in row:
            columns[key] = _branch(row[key])
    columns["alternatives"] = tuple(map(_branch, row.get("alternatives", ())))
    variants = row.get("refused", ())
    columns["refused"] = tuple((one["key"], one.get("value"), one["why"]) for one in variants)
    columns["cached"] = tuple(row.get("cached", ()))
    unserved = row.get("unserved", "")
    columns["unserved"] = _REASONS.get(unserved, unserved)
    return Family(**columns)


def _branch(row: dict[str, Any]) -> Branch:
    columns: dict[str, Any] = {
        key: tuple(one) if isinstance(one, list) else one for key, one in row.items()
    }
    return branch(**columns)


FAMILIES = _rows()
"""The rows that come with this package, and those of `register_architecture`."""

WRAPPERS = {
    name: Wrapper(tower, (_HEADS[name],) if name in _HEADS else ())
    for tower, names in _TOWERS.items()
    for name in names.split()
}
"""By the `model_type` of the wrapper; which language model it has, its configuration says."""

PRUNED_PREFIX = "disp_"
"""What `model_type` begins with in a folder that this package has written."""

ARCHITECTURES = "disp_llm.architectures"
"""The group of entry points through which another package adds rows: the name of each is a
`model_type`, its object a `Family`."""

on_registration: list[Callable[[str], None]] = []
"""Functions that are called with every `model_type` that is registered from now on."""


def register_architecture(model_type: str, row: Family | Wrapper) -> None:
    """Adds a row or a wrapper for this process, or replaces one.

    Args:
        model_type: that of the configuration of an architecture that transformers has; of a
            wrapper `AutoModelForMultimodalLM`, and its language model needs a row of its own.
    """
    table: dict[str, Any] = WRAPPERS if isinstance(row, Wrapper) else FAMILIES
    table[model_type] = row
    for function in on_registration:
        function(model_type)


def model_types() -> tuple[str, ...]:
    """The `model_type` of every row; nothing of another package is imported to say so."""
    return tuple(dict.fromkeys([*FAMILIES, *added_names(ARCHITECTURES)]))


def row_of(model_type: str) -> Family | None:
    """The row of an architecture, ours before another package's; None where there is none."""
    return FAMILIES.get(model_type) or added(ARCHITECTURES, model_type, Family, "model")


def family_of_any(config: Any) -> Family:
    """The row of a dense or a pruned model's configuration, of a wrapper that of its language
    model.

    It is without a mixture where the configuration has no experts: what is refused or slower for
    mixtures need not be for it.
    """
    model_type = _type_of(config).removeprefix(PRUNED_PREFIX)
    wrapper = WRAPPERS.get(model_type)
    if wrapper is not None:
        config = config.get_text_config()
        model_type = ROW_OF.get(config.model_type, config.model_type)
    row = row_of(model_type)
    if row is None:
        near = nearest(model_type, [*model_types(), *WRAPPERS])
        raise InputError(
            f"architecture '{model_type}' is not supported{near}",
            field="model",
            hint="docs/architectures.md lists those that are, docs/extend.md explains how to add a "
            "row",
        )
    experts = row.mixture.experts if row.mixture else None
    if experts is not None and not getattr(config, experts.count, 1):
        row = replace(row, mixture=None)
    return row if wrapper is None else wrapper.row(row)


def family_of(config: Any) -> Family:
    """The row of a configuration that can be pruned: of an architecture of transformers' own, not
    pruned yet, and no refused variant."""
    model_type = _type_of(config)
    if model_type.startswith(PRUNED_PREFIX):
        raise InputError(
            "this model has been pruned already",
            field="model",
            hint="prune the original, or make another size of its run with `disp-llm export`",
        )
    family, kind = family_of_any(config), type(config)
    if not kind.__module__.startswith("transformers."):
        raise InputError(
            f"{kind.__name__} is no class of transformers, whose own a pruned model extends",
            field="model",
            hint="use an architecture that transformers has (docs/extend.md)",
        )
    described = config.get_text_config() if model_type in WRAPPERS else config
    for key, value, reason in family.refused:
        if getattr(described, key, None) == value:
            raise InputError(
                f"{described.model_type} with {key}={value} is not supported: {reason}",
                field="model",
                hint=f"use a {described.model_type} model without that setting",
            )
    return family


def _type_of(config: Any) -> str:
    return str(getattr(config, "model_type", "") or "without model_type")
