"""A configuration -> its row in the table of architectures.

An architecture is one row of data in `architectures.toml` and nothing else. The row suffices to
mask a model, to cost mask entries, to cut the model and to load the cut one: no other file names an
architecture. Other packages add rows by entry points, rows and wrappers by `register_architecture`.
"""

import importlib
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
"""Maps language models that exist only inside wrappers to the architecture whose row they use."""


def _rows() -> dict[str, Family]:
    """Returns all rows, each completed with the columns of the row that it is `like`."""
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
"""Rows shipped with this package and rows added by `register_architecture`."""

WRAPPERS = {
    name: Wrapper(tower, (_HEADS[name],) if name in _HEADS else ())
    for tower, names in _TOWERS.items()
    for name in names.split()
}
"""Wrappers by their `model_type`; a wrapper's configuration names its language model."""

PRUNED_PREFIX = "disp_"
"""Prefix of `model_type` in folders that this package has written."""

ARCHITECTURES = "disp_llm.architectures"
"""Group of entry points through which other packages add rows. The name of an entry point is a
`model_type`, its object a `Family`."""

on_registration: list[Callable[[str], None]] = []
"""Functions called with every `model_type` registered from now on."""


def register_architecture(model_type: str, row: Family | Wrapper) -> None:
    """Adds or replaces a row or a wrapper in this process.

    Args:
        model_type: of the configuration of an architecture in transformers. A wrapper must be one
            that `AutoModelForMultimodalLM` loads, and its language model needs its own row.
    """
    table: dict[str, Any] = WRAPPERS if isinstance(row, Wrapper) else FAMILIES
    table[model_type] = row
    for function in on_registration:
        function(model_type)


def model_types() -> tuple[str, ...]:
    """Returns the `model_type` of every row, without importing other packages."""
    return tuple(dict.fromkeys([*FAMILIES, *added_names(ARCHITECTURES)]))


def row_of(model_type: str) -> Family | None:
    """Returns the row of an architecture, ours before another package's; None if there is none."""
    return FAMILIES.get(model_type) or added(ARCHITECTURES, model_type, Family, "model")


def family_of_any(config: Any) -> Family:
    """Returns the row of a dense or pruned model, for a wrapper that of its language model; refuses
    unsupported architectures.

    Drops the mixture if the configuration has no experts, so that refusals and slower paths for
    mixtures do not apply.
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
    auto = importlib.import_module("transformers.models.auto.configuration_auto")
    if model_type not in auto.CONFIG_MAPPING_NAMES:
        row = replace(row, unserved="its classes are not in transformers")
    experts = row.mixture.experts if row.mixture else None
    if experts is not None and not getattr(config, experts.count, 1):
        row = replace(row, mixture=None)
    return row if wrapper is None else wrapper.row(row)


def family_of(config: Any) -> Family:
    """Returns the row of a model that can be pruned. Refuses a model that is pruned already, whose
    classes an exported folder could not find, or whose variant the row refuses."""
    model_type = _type_of(config)
    if model_type.startswith(PRUNED_PREFIX):
        raise InputError(
            "this model has been pruned already",
            field="model",
            hint="prune the original, or make another size of its run with `disp-llm export`",
        )
    family = family_of_any(config)
    if package_of(config) != "transformers":
        _require_registered(type(config))
    described = config.get_text_config() if model_type in WRAPPERS else config
    for key, value, reason in family.refused:
        if getattr(described, key, None) == value:
            raise InputError(
                f"{described.model_type} with {key}={value} is not supported: {reason}",
                field="model",
                hint=f"use a {described.model_type} model without that setting",
            )
    return family


def package_of(config: Any) -> str:
    """Returns the name of the package that has a configuration's class."""
    return type(config).__module__.partition(".")[0]


def _require_registered(kind: type) -> None:
    """Refuses a configuration of another package whose classes an exported folder would not find:
    it names them as transformers' auto classes do."""
    transformers = importlib.import_module("transformers")
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    tables = auto.MODEL_MAPPING, auto.MODEL_FOR_CAUSAL_LM_MAPPING
    configs, own = transformers.CONFIG_MAPPING, _type_of(kind)
    known = own in configs and configs[own] is kind
    if not known or not all(kind in table for table in tables):
        raise InputError(
            f"{kind.__name__} and its models are not registered with transformers",
            field="model",
            hint="call `register` of AutoConfig, AutoModel and AutoModelForCausalLM "
            "(docs/extend.md)",
        )
    for one in (kind, *(table[kind] for table in tables)):
        if hasattr(transformers, one.__name__):
            raise InputError(
                f"{one.__module__}.{one.__name__} has the name of a class of transformers",
                field="model",
                hint="rename it",
            )


def _type_of(config: Any) -> str:
    return str(getattr(config, "model_type", "") or "without model_type")
