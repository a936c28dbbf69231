"""An exported folder, with its card, to a place of its own or to the hub."""

import json
import shutil
from pathlib import Path
from typing import Any

from disp_llm.card import PLACE
from disp_llm.commands import PushCommand, SaveCommand
from disp_llm.compact.configuration_disp_llm import PREFIX
from disp_llm.config import HEADS, SITES, InputError
from disp_llm.families import PRUNED_PREFIX
from disp_llm.files import atomic

INTERMEDIATE = ("ffn_dim", "ffn_hidden_size", "n_inner", "intermediate_size")
"""What configurations call the width inside an MLP."""

STREAM = ("hidden_size", "n_embd")
"""What they call the width of the residual stream."""


def save(command: SaveCommand) -> dict[str, Any]:
    """Copies a folder; the card then names the place.

    Raises:
        InputError: not an exported folder, or the place is taken or cannot be written; --plain and
            widths that the original's architecture cannot have.
    """
    _require_exported(command.folder)
    plain = _plain_config(command.folder) if command.plain else None
    if command.to.exists():
        raise InputError(f"{command.to} exists", flag="--to", mend="name a new folder")
    card = _card(command.folder, str(command.to), command.license)
    with atomic(command.to) as temporary:
        shutil.copytree(command.folder, temporary)
        (temporary / "README.md").write_text(card)
        if plain is not None:
            (temporary / "config.json").write_text(json.dumps(plain, indent=2) + "\n")
            for path in temporary.glob("*_disp_llm.py"):
                path.unlink()
    return {"folder": str(command.to), "bytes": _bytes(command.to)}


def push(command: PushCommand) -> dict[str, Any]:
    """Uploads a folder to a repository of the hub, which is made where there is none.

    Raises:
        InputError: not an exported folder, no such account or no right to write, hub not reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    _require_exported(command.folder)
    api = HfApi()
    try:
        made = api.create_repo(command.name, private=command.private, exist_ok=True)
        files = [path for path in command.folder.iterdir() if path.is_file()]
        card = _card(command.folder, made.repo_id, command.license)
        contents = {path.name: path for path in files} | {"README.md": card.encode()}
        commit = api.create_commit(
            made.repo_id,
            [CommitOperationAdd(name, content) for name, content in contents.items()],
            commit_message=command.message,
        )
    except (
        *HfHubHTTPError.__bases__,
        HFValidationError,
    ) as error:  # of the HTTP client, and OSError
        why = next((line for line in str(error).splitlines() if line.strip()), str(error))
        raise InputError(
            f"cannot push to {command.name} ({why.strip(' .')})",
            flag="NAME",
            mend="check the name, the network and `hf auth login`",
        ) from error
    return {"name": made.repo_id, "url": str(made), "commit": commit.oid}


def intermediate_only(folder: Path, flag: str) -> tuple[dict[str, Any], list[int]]:
    """Configuration and intermediate widths of a folder in which nothing else is cut.

    Raises:
        InputError: not an exported folder; with `flag`, if other sites are cut.
    """
    _require_exported(folder)
    config = json.loads((folder / "config.json").read_text())
    widths = config["disp_llm"]["widths"]
    full = next(config[name] for name in STREAM if name in config)
    cut = [site for site in SITES if site != "mlp_mid" and min(widths[site]) < full]
    cut += [site for site in widths if site == HEADS]
    if cut or config["disp_llm"].get("biases"):
        what = f"{', '.join(cut)} are cut" if cut else "layers have gained biases (--method flap)"
        raise InputError(
            f"{what}, which only our own architecture can hold",
            flag=flag,
            mend="prune with --sites mlp_mid, and another method if it was flap",
        )
    return config, widths["mlp_mid"]


def _require_exported(folder: Path) -> None:
    try:
        config = json.loads((folder / "config.json").read_text())
        exported = "disp_llm" in config and (folder / "README.md").is_file()
    except (OSError, ValueError):
        exported = False
    if not exported:
        raise InputError(
            f"{folder} is not an exported folder",
            flag="FOLDER",
            mend="name a model folder of a run, such as run/model",
        )


def _plain_config(folder: Path) -> dict[str, Any]:
    """The configuration with the original's architecture and one intermediate width."""
    config, widths = intermediate_only(folder, "--plain")
    if len(set(widths)) > 1:
        raise InputError(
            "intermediate widths differ between blocks",
            flag="--plain",
            mend="prune with --sites mlp_mid to the smallest size of a large --align",
        )
    name = next(name for name in INTERMEDIATE if config.get(name) is not None)
    native = {
        "model_type": config["model_type"].removeprefix(PRUNED_PREFIX),
        "architectures": [name.removeprefix(PREFIX) for name in config["architectures"]],
        name: widths[0],
    }
    ours = ("disp_llm", "auto_map")
    return {key: value for key, value in config.items() if key not in ours} | native


def _card(folder: Path, place: str, license: str) -> str:
    """The folder's card with the place filled in, and a licence if one is given."""
    from huggingface_hub import ModelCard

    card = ModelCard((folder / "README.md").read_text())
    if license:
        card.data.__dict__["license"] = license
    card.text = card.text.replace(PLACE, place)
    return str(card)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
