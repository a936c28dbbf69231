"""An exported folder, with its card, to a place of its own or to the hub."""

import json
import shutil
from pathlib import Path
from typing import Any

from disp_llm.config.errors import InputError
from disp_llm.config.share import PushConfig, SaveConfig
from disp_llm.export.card import PLACE
from disp_llm.export.plain import plain_config, require_exported
from disp_llm.runs.files import atomic


def save(config: SaveConfig) -> dict[str, Any]:
    """Copies a folder; the card then names the place.

    Raises:
        InputError: not an exported folder, or the place is taken or cannot be written; with
            `plain`, also widths that the original's architecture cannot have.
    """
    config.validate()
    require_exported(config.folder)
    plain = plain_config(config.folder) if config.plain else None
    if config.to.exists():
        raise InputError(f"{config.to} exists", field="to", hint="name a new folder")
    card = _card(config.folder, str(config.to), config.license)
    with atomic(config.to) as temporary:
        shutil.copytree(config.folder, temporary)
        (temporary / "README.md").write_text(card)
        if plain is not None:
            (temporary / "config.json").write_text(json.dumps(plain, indent=2) + "\n")
            for path in temporary.glob("*_disp_llm.py"):
                path.unlink()
    return {"folder": str(config.to), "bytes": _bytes(config.to)}


def push(config: PushConfig) -> dict[str, Any]:
    """Uploads a folder to a repository of the hub, which is made where there is none.

    Raises:
        InputError: not an exported folder; no such account, or no right to write; or the hub cannot
            be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    require_exported(config.folder)
    api = HfApi()
    try:
        made = api.create_repo(config.name, private=config.private, exist_ok=True)
        files = [path for path in config.folder.iterdir() if path.is_file()]
        card = _card(config.folder, made.repo_id, config.license)
        contents = {path.name: path for path in files} | {"README.md": card.encode()}
        commit = api.create_commit(
            made.repo_id,
            [CommitOperationAdd(name, content) for name, content in contents.items()],
            commit_message=config.message,
        )
    # The bases are the HTTP client's error and OSError.
    except (*HfHubHTTPError.__bases__, HFValidationError) as error:
        why = next((line for line in str(error).splitlines() if line.strip()), str(error))
        raise InputError(
            f"cannot push to {config.name} ({why.strip(' .')})",
            field="name",
            hint="check the name, the network and `hf auth login`",
        ) from error
    return {"name": made.repo_id, "url": str(made), "commit": commit.oid}


def _card(folder: Path, place: str, license: str) -> str:
    """The folder's card that names the place, and a licence if one is given."""
    from huggingface_hub import ModelCard

    card = ModelCard((folder / "README.md").read_text())
    if license:
        card.data.__dict__["license"] = license
    card.text = card.text.replace(PLACE, place)
    return str(card)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
