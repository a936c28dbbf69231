"""Writes the model for the original's own class, if the original's configuration can describe it.

It can if the residual stream is not cut and all blocks have the same intermediate width, the same
number of KV heads and, in mixtures, the same number of experts.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from disp_llm.compact import CODE
from disp_llm.compact.configuration_disp_llm import PREFIX
from disp_llm.compact.modeling_disp_llm import linear_at, widths_of
from disp_llm.config.errors import InputError
from disp_llm.config.names import BRANCH_OF, BRANCHES, HEADS, SITES
from disp_llm.config.schema import AtLeastOne, as_type
from disp_llm.exporter.cutting import head_counts
from disp_llm.exporter.exported import exported_config, has_experts
from disp_llm.exporter.formats import Job, share_card
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.shapes import expert_weights
from disp_llm.models.architectures import PRUNED_PREFIX, family_of
from disp_llm.models.files import weight_files
from disp_llm.models.loading import empty_model, family_of_any, load_config
from disp_llm.runs.files import write_json
from disp_llm.runs.sums import CHANGED_FOLDER
from disp_llm.runs.tensors import read_tensors

INTERMEDIATE = ("ffn_dim", "ffn_hidden_size", "n_inner", "intermediate_size")
"""Configuration keys of the intermediate width of an MLP."""

STREAM = ("hidden_size", "n_embd", "d_model")
"""Configuration keys of the width of the residual stream."""

OURS = ("disp_llm", "auto_map")
"""Configuration keys of our own architecture alone."""

OF_HEADS = ("per_layer_config", "allow_global_per_layer_attribute_access")
"""Configuration keys of pruned heads; some originals use them for other widths."""


def check(folder: Path) -> None:
    """Refuses models that the original's configuration cannot describe."""
    native_model(folder, plain_config(folder))


def write(job: Job) -> None:
    """Takes over the files without our code, and writes the plain configuration. Experts are
    unpacked, as in the original's files."""
    plain, unpacked = plain_config(job.folder), []
    if has_experts(exported_config(job.folder)):
        _write_native_weights(job, plain)
        unpacked = [name for name in job.files if name.startswith("model")]
    job.take("config.json", *CODE, *unpacked)
    write_json(job.new / "config.json", plain)
    share_card(job, "plain")


def whole_stream(folder: Path, hint: str) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """Returns the configuration and widths of a folder in which only intermediate widths, KV heads
    and whole branches are cut; the widths include heads if these are a site. Refuses a cut residual
    stream and gained biases; `hint` says how to prune without."""
    config = exported_config(folder)
    widths = config["disp_llm"]["widths"]
    inner = language_model_in(config)
    full = _number_of(_key(STREAM, inner, folder), inner, folder)
    there = {name: widths.get(name, [1] * len(widths["mlp_mid"])) for name in BRANCHES}
    cut = [
        site
        for site in SITES
        if site != "mlp_mid"
        for width, kept in zip(widths[site], there[BRANCH_OF[site]], strict=True)
        if kept and width < full
    ]
    inside = {site: numbers for site, numbers in widths.items() if site == HEADS}
    if cut or config["disp_llm"].get("biases"):
        biases = "layers have gained biases (as the method flap adds them)"
        what = f"{', '.join(dict.fromkeys(cut))} are cut" if cut else biases
        raise InputError(
            f"{what}, which only our own architecture can hold",
            field="to",
            hint=f"prune with {hint}, and with another method if it was flap",
        )
    return config, {"mlp_mid": widths["mlp_mid"], **inside, **there}


def language_model_in(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the language model's part of a configuration: all of it unless it is a wrapper's."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _key(names: tuple[str, ...], config: dict[str, Any], folder: Path) -> str:
    """Returns the first of these keys that the configuration has, preferring keys with a number
    over keys with null, which leave it to the class."""
    found = [name for name in names if name in config]
    if not found:
        raise InputError(
            f"has none of {', '.join(names)}",
            field=str(folder / "config.json"),
            hint="use the folder as it is",
        )
    return min(found, key=lambda name: config[name] is None)


def _number_of(name: str, config: dict[str, Any], folder: Path) -> int:
    field = str(folder / "config.json")
    return as_type(config[name], AtLeastOne, field=field, hint=CHANGED_FOLDER, place=name)


def plain_config(folder: Path) -> dict[str, Any]:
    """Returns the folder's configuration with the original's architecture and one number for all
    blocks; refuses whole branches that are pruned."""
    config, cut = whole_stream(folder, "--for anywhere")
    if not all(all(cut[name]) for name in BRANCHES):
        raise InputError(
            "whole branches are pruned, which only our own architecture can hold",
            field="to",
            hint="prune with --for anywhere",
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
    """Returns the original's configuration keys for the kept KV heads, the same number in every
    block: also their query heads, and the width of a head, which their number no longer implies."""
    stated = load_config(str(folder))
    if "heads" in stated.disp_llm:
        raise InputError(
            "heads are cut, of which a hybrid's blocks have several kinds",
            field="to",
            hint="prune with --sites mlp_mid",
        )
    text = stated.get_text_config()
    numbers = head_counts(text)
    left, whole = _one(HEADS, kept), min(numbers.values())
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return {name: number * left // whole for name, number in numbers.items()} | {"head_dim": width}


def _sizes(folder: Path, config: dict[str, Any], cut: dict[str, list[int]]) -> dict[str, int]:
    """Returns the original's configuration keys for the widths: one number for all MLPs, and one
    width and one number of experts for all mixtures."""
    if not has_experts(config):
        inner, widths = language_model_in(config), cut["mlp_mid"]
        name = _key(INTERMEDIATE, inner, folder)
        if len(set(widths)) > 1:  # blocks of the original may differ in width too
            number = _number_of(name, inner, folder)
            whole = zip(widths, _original_widths(config), strict=True)
            widths = [number * left // full for left, full in whole]
        return {name: _one(name, widths)}
    stated = load_config(str(folder))
    target = PrunableModel(empty_model(stated), family_of_any(stated))
    called, found = type(stated.get_text_config()).attribute_map, dict[str, set[int]]()
    for block, width in zip(target.blocks, cut["mlp_mid"], strict=True):
        _, mlp = target.branches_of(block)
        if mlp.experts is None:
            name = _key(INTERMEDIATE, language_model_in(config), folder)
            found.setdefault(name, set()).add(width)
        else:
            count = len(expert_weights(block, mlp)[0])
            for key, number in ((mlp.experts.width, width), (mlp.experts.count, count)):
                found.setdefault(called.get(key, key), set()).add(number)
    return {name: _one(name, numbers) for name, numbers in found.items()}


def _original_widths(config: dict[str, Any]) -> list[int]:
    """Returns the intermediate width of every block of the original."""
    values = _without((*OURS, *OF_HEADS), config)
    native = _read(values | {"model_type": config["model_type"].removeprefix(PRUNED_PREFIX)})
    target = PrunableModel(empty_model(native), family_of(native))
    mlps = ((block, target.branches_of(block)[1]) for block in target.blocks)
    return [widths_of(linear_at(block, mlp.writes))[0] for block, mlp in mlps]


def _one(name: str, numbers: Iterable[int]) -> int:
    """Returns the number that all blocks have; refuses different ones."""
    several = sorted(set(numbers))
    if len(several) > 1:
        raise InputError(
            f"{name} differs between blocks ({', '.join(map(str, several))})",
            field="to",
            hint="prune with --for anywhere",
        )
    return several[0]


def _read(values: dict[str, Any]) -> PreTrainedConfig:
    """Returns a configuration as transformers reads it from a file."""
    with tempfile.TemporaryDirectory() as temporary:
        write_json(Path(temporary) / "config.json", values)
        return load_config(temporary)


def native_model(folder: Path, plain: dict[str, Any]) -> PreTrainedModel:
    """Returns the original's model of a plain configuration, without weights. Refuses it if another
    width follows from a cut one: a shared expert's from the others', a head's from their number."""
    native = empty_model(_read(plain))
    stated = empty_model(load_config(str(folder))).state_dict()
    shapes = {name: tensor.shape for name, tensor in native.state_dict().items()}
    if shapes != {name: tensor.shape for name, tensor in stated.items()}:
        raise InputError(
            "the original's architecture ties another width to the one that is cut",
            field="to",
            hint="prune with other --sites: experts alone, or mlp_mid without heads",
        )
    return native


def _write_native_weights(job: Job, plain: dict[str, Any]) -> None:
    """Writes the weights under the names in the original's files: transformers packs all experts
    into one tensor when it loads a model, and unpacks them when it saves one."""
    native: Any = native_model(job.folder, plain)
    state = {}
    for path in weight_files(job.folder):
        state |= read_tensors(path, CHANGED_FOLDER).tensors
    native.load_state_dict(state, strict=False, assign=True)
    native.tie_weights()
    with tempfile.TemporaryDirectory(dir=job.new) as aside:
        native.save_pretrained(aside)
        for path in Path(aside).glob("model*"):
            path.rename(job.new / path.name)
