"""What other formats can hold: folders in which nothing of the residual stream is cut, but
intermediate widths, KV heads and perhaps whole branches."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta
from transformers import AutoConfig

from disp_llm.compact.configuration_disp_llm import PREFIX
from disp_llm.compact.modeling_disp_llm import linear_at, widths_of
from disp_llm.config.errors import InputError
from disp_llm.config.names import BRANCH_OF, BRANCHES, HEADS, SITES
from disp_llm.config.schema import Count, Size, as_type
from disp_llm.export.cutting import head_counts
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.shapes import expert_weights
from disp_llm.models.architectures import PRUNED_PREFIX, family_of
from disp_llm.models.loading import family_of_any, load_config
from disp_llm.models.skeleton import empty_model
from disp_llm.runs.files import read_json

INTERMEDIATE = ("ffn_dim", "ffn_hidden_size", "n_inner", "intermediate_size")
"""What configurations call the width inside an MLP."""

EXPORT_AGAIN = "delete the folder and export it again"
"""What to do about a damaged configuration."""

OURS = ("disp_llm", "auto_map")
"""What only the configurations of our own architecture have."""

OF_HEADS = ("per_layer_config", "allow_global_per_layer_attribute_access")
"""What they have of heads that are cut, and some originals of other widths."""

STREAM = ("hidden_size", "n_embd")
"""What configurations call the width of the residual stream."""


@dataclass(frozen=True)
class Cut:
    """What `disp_llm` of an exported folder's configuration says of its blocks."""

    widths: dict[str, Annotated[list[Count], Meta(min_length=1)]]
    """Of every site, block by block."""
    biases: bool = False

    def __post_init__(self) -> None:
        if not set(SITES) <= self.widths.keys():
            raise ValueError("has not the widths of all sites")
        if len({len(blocks) for blocks in self.widths.values()}) > 1:
            raise ValueError("has not a width of every site for every block")


@dataclass(frozen=True)
class Exported:
    """What is read of an exported folder's `config.json`."""

    model_type: str
    architectures: list[str]
    disp_llm: Cut


def require_exported(folder: Path, card: bool = True) -> None:
    """Refuses what is not an exported folder.

    Args:
        card: whether it must have its card, which is lost where a model is trained by others.

    Raises:
        InputError: it is not, or its configuration is damaged.
    """
    stated = folder / "config.json"
    config = read_json(stated, EXPORT_AGAIN) if stated.is_file() else {}
    if "disp_llm" not in config or (card and not has_card(folder)):
        raise InputError(
            f"{folder} is not an exported folder",
            field="folder",
            hint="name a model folder of a run, such as run/keep-0.5",
        )
    as_type(config, Exported, field=str(stated), hint=EXPORT_AGAIN)


def has_card(folder: Path) -> bool:
    """Whether a folder has a model card."""
    return (folder / "README.md").is_file()


def is_mixture(folder: Path) -> bool:
    """Whether an exported folder has mixtures of experts."""
    said = read_json(folder / "config.json", EXPORT_AGAIN)["disp_llm"]
    mlp = said.get("mlp")
    return "mixture" in said or (isinstance(mlp, dict) and "experts" in mlp)


def whole_stream(folder: Path, field: str) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """Configuration and widths of a folder in which nothing is cut but intermediate widths, KV
    heads, whose numbers are among the widths if some are cut, and whole branches.

    Args:
        field: the setting that asks for such a folder.

    Raises:
        InputError: it is not an exported folder, or something else is cut.
    """
    require_exported(folder)
    config = read_json(folder / "config.json", EXPORT_AGAIN)
    widths = config["disp_llm"]["widths"]
    full = _number_of(STREAM, language_model_in(config), folder)[1]
    there = {name: widths.get(name, [1] * len(widths["mlp_mid"])) for name in BRANCHES}
    cut = [
        site
        for site in SITES
        if site != "mlp_mid"
        for width, kept in zip(widths[site], there[BRANCH_OF[site]], strict=True)
        if kept and width < full
    ]
    inside = {site: numbers for site, numbers in widths.items() if site == HEADS}
    cut = list(dict.fromkeys(cut))
    if is_mixture(folder) and field != "plain":
        raise InputError(
            "is a mixture of experts, which only our own architecture or the original's can hold",
            field=field,
            hint="use the folder as it is",
        )
    if config.get("quantization_config") and field != "plain":
        raise InputError(
            "is quantised, and its weights are no numbers by themselves",
            field=field,
            hint="name the folder that it was made from",
        )
    if cut or config["disp_llm"].get("biases"):
        biases = "layers have gained biases (as the method flap adds them)"
        what = f"{', '.join(cut)} are cut" if cut else biases
        way = "`uniform`" if field == "plain" else "`sites` mlp_mid heads"
        raise InputError(
            f"{what}, which only our own architecture can hold",
            field=field,
            hint=f"prune with {way}, and with another method if it was flap",
        )
    return config, {"mlp_mid": widths["mlp_mid"], **inside, **there}


def language_model_in(config: dict[str, Any]) -> dict[str, Any]:
    """What a configuration says of the language model: all of it, unless it is a wrapper's."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _number_of(names: tuple[str, ...], config: dict[str, Any], folder: Path) -> tuple[str, int]:
    """The first of these names that the configuration has, and its number."""
    found = {name: config[name] for name in names if config.get(name) is not None}
    field = str(folder / "config.json")
    if not found:
        raise InputError(f"has none of {', '.join(names)}", field=field, hint=EXPORT_AGAIN)
    name, value = next(iter(found.items()))
    return name, as_type(value, Size, field=field, hint=EXPORT_AGAIN, place=name)


def plain_config(folder: Path) -> dict[str, Any]:
    """The folder's configuration with the original's architecture, one intermediate width, one
    number of KV heads and, of a mixture, one of experts.

    Raises:
        InputError: the original's architecture cannot hold the folder.
    """
    config, cut = whole_stream(folder, "plain")
    if not all(all(cut[name]) for name in BRANCHES):
        raise InputError(
            "whole branches are pruned, which only our own architecture can hold",
            field="plain",
            hint="prune with `uniform`",
        )
    native = {
        "model_type": config["model_type"].removeprefix(PRUNED_PREFIX),
        "architectures": [name.removeprefix(PREFIX) for name in config["architectures"]],
    }
    inner, sizes = language_model_in(config), _sizes(folder, config, cut)
    if HEADS in cut:
        sizes |= _heads(folder, cut[HEADS])
    ours = (*OURS, *(OF_HEADS if HEADS in cut else ()))
    plain = _without(ours, inner) | sizes
    if inner is not config:
        plain = _without(ours, config) | {"text_config": plain}
    return plain | native


def _without(ours: tuple[str, ...], config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ours}


def _heads(folder: Path, kept: list[int]) -> dict[str, int]:
    """What the original's configuration says of so many KV heads in every block: of the queries
    that go with them, and of the width of a head, which no longer follows from their number.

    Raises:
        InputError: their number differs between blocks, or blocks have something else in the place
            of attention.
    """
    stated = load_config(str(folder))
    if "heads" in stated.disp_llm:
        raise InputError(
            "heads are cut, of which a hybrid's blocks have several kinds",
            field="plain",
            hint="prune with `sites` mlp_mid",
        )
    text = stated.get_text_config()
    numbers = head_counts(text)
    left, whole = _one(HEADS, kept), min(numbers.values())
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return {name: number * left // whole for name, number in numbers.items()} | {"head_dim": width}


def _sizes(folder: Path, config: dict[str, Any], cut: dict[str, list[int]]) -> dict[str, int]:
    """What the original's configuration says of the widths, by its keys: one number for all dense
    MLPs, and for all mixtures one width and one number of experts.

    Raises:
        InputError: they differ between blocks.
    """
    if not is_mixture(folder):
        name, number = _number_of(INTERMEDIATE, language_model_in(config), folder)
        widths = cut["mlp_mid"]
        if len(set(widths)) > 1:  # some blocks of the original may be several times as wide
            whole = zip(widths, _original_widths(config), strict=True)
            widths = [number * left // full for left, full in whole]
        return {name: _one(name, widths)}
    stated = load_config(str(folder))
    target = PrunableModel(empty_model(stated), family_of_any(stated))
    called, found = type(stated.get_text_config()).attribute_map, dict[str, set[int]]()
    for block, width in zip(target.blocks, cut["mlp_mid"], strict=True):
        _, mlp = target.branches_of(block)
        if mlp.experts is None:
            name, _ = _number_of(INTERMEDIATE, language_model_in(config), folder)
            found.setdefault(name, set()).add(width)
        else:
            count = len(expert_weights(block, mlp)[0])
            for key, number in ((mlp.experts.width, width), (mlp.experts.count, count)):
                found.setdefault(called.get(key, key), set()).add(number)
    return {name: _one(name, numbers) for name, numbers in found.items()}


def _original_widths(config: dict[str, Any]) -> list[int]:
    """The width inside the dense MLP of every block of the original."""
    values = _without((*OURS, *OF_HEADS, "model_type"), config)
    native = AutoConfig.for_model(config["model_type"].removeprefix(PRUNED_PREFIX), **values)
    target = PrunableModel(empty_model(native), family_of(native))
    mlps = ((block, target.branches_of(block)[1]) for block in target.blocks)
    return [widths_of(linear_at(block, mlp.writes))[0] for block, mlp in mlps]


def _one(name: str, numbers: Iterable[int]) -> int:
    """The number that all blocks have.

    Raises:
        InputError: they differ.
    """
    several = sorted(set(numbers))
    if len(several) > 1:
        raise InputError(
            f"{name} differs between blocks ({', '.join(map(str, several))})",
            field="plain",
            hint="prune with `uniform`",
        )
    return several[0]
