"""An exported folder, with its card, to a place of its own or to the hub."""

import shutil
from pathlib import Path
from typing import Any

from disp_llm.card import PLACE
from disp_llm.config import InputError, PushCommand, SaveCommand
from disp_llm.files import atomic


def save(command: SaveCommand) -> dict[str, Any]:
    """Copies a folder; the card then names the place.

    Raises:
        InputError: not an exported folder, or the place is taken or cannot be written.
    """
    _require_exported(command.folder)
    if command.to.exists():
        raise InputError(f"{command.to} exists", flag="--to", mend="name a new folder")
    card = _card(command.folder, str(command.to), command.license)
    with atomic(command.to) as temporary:
        shutil.copytree(command.folder, temporary)
        (temporary / "README.md").write_text(card)
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


def _require_exported(folder: Path) -> None:
    missing = [name for name in ("config.json", "README.md") if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder} has no {missing[0]}",
            flag="FOLDER",
            mend="name a model folder of a run, such as run/model",
        )


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
