"""What other formats can hold: folders in which nothing but the intermediate width is cut."""

import json
from pathlib import Path
from typing import Any

from disp_llm.compact.configuration_disp_llm import PREFIX
from disp_llm.config.errors import InputError
from disp_llm.config.names import HEADS, SITES
from disp_llm.models.architectures import PRUNED_PREFIX

INTERMEDIATE = ("ffn_dim", "ffn_hidden_size", "n_inner", "intermediate_size")
"""What configurations call the width inside an MLP."""

STREAM = ("hidden_size", "n_embd")
"""What configurations call the width of the residual stream."""


def require_exported(folder: Path) -> None:
    """Refuses what is not an exported folder with its card.

    Raises:
        InputError: it is not.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        exported = "disp_llm" in config and (folder / "README.md").is_file()
    except (OSError, ValueError):
        exported = False
    if not exported:
        raise InputError(
            f"{folder} is not an exported folder",
            field="folder",
            hint="name a model folder of a run, such as run/model",
        )


def intermediate_only(folder: Path, field: str) -> tuple[dict[str, Any], list[int]]:
    """Configuration and intermediate widths of a folder in which nothing else is cut.

    Args:
        field: the setting that asks for such a folder.

    Raises:
        InputError: it is not an exported folder, or something else is cut.
    """
    require_exported(folder)
    config = json.loads((folder / "config.json").read_text())
    widths = config["disp_llm"]["widths"]
    full = next(config[name] for name in STREAM if name in config)
    cut = [site for site in SITES if site != "mlp_mid" and min(widths[site]) < full]
    cut += [site for site in widths if site == HEADS]
    if cut or config["disp_llm"].get("biases"):
        biases = "layers have gained biases (as the method flap adds them)"
        what = f"{', '.join(cut)} are cut" if cut else biases
        raise InputError(
            f"{what}, which only our own architecture can hold",
            field=field,
            hint="prune with `sites` mlp_mid, and with another method if it was flap",
        )
    return config, widths["mlp_mid"]


def plain_config(folder: Path) -> dict[str, Any]:
    """The folder's configuration with the original's architecture and one intermediate width.

    Raises:
        InputError: the original's architecture cannot hold the folder.
    """
    config, widths = intermediate_only(folder, "plain")
    if len(set(widths)) > 1:
        raise InputError(
            "intermediate widths differ between blocks",
            field="plain",
            hint="prune with `sites` mlp_mid to the smallest size of a large `align`",
        )
    name = next(name for name in INTERMEDIATE if config.get(name) is not None)
    native = {
        "model_type": config["model_type"].removeprefix(PRUNED_PREFIX),
        "architectures": [name.removeprefix(PREFIX) for name in config["architectures"]],
        name: widths[0],
    }
    ours = ("disp_llm", "auto_map")
    return {key: value for key, value in config.items() if key not in ours} | native
