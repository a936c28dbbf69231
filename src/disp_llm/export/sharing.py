"""An exported folder, with its card, to a place of its own or to the hub.

Only files that belong in a model folder go along; what is left out is named in one line.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from yaml import YAMLError

from disp_llm.config.errors import InputError
from disp_llm.config.share import PushConfig, SaveConfig
from disp_llm.export.belongings import CARD, CODE, belongings
from disp_llm.export.card import ONLY_OURS, PLACE
from disp_llm.export.native import native_model, native_weights
from disp_llm.export.plain import is_mixture, plain_config, require_exported
from disp_llm.runs.lock import created
from disp_llm.runs.markdown import in_code
from disp_llm.runs.sums import SUMS, folder_problems, read_sums, sha256, sums_text

logger = logging.getLogger(__name__)

Contents = dict[str, Path | bytes]
"""What a folder will hold elsewhere: a file as it is, or other bytes in its place."""


def save(config: SaveConfig) -> dict[str, Any]:
    """Copies a folder; the card then names the place, by its last part.

    Raises:
        InputError: not an exported folder, or one with damaged files, links or code of others; the
            place is taken, lies inside the folder, or cannot be written; with `plain`, also widths
            that the original's architecture cannot have.
    """
    config.validate()
    require_exported(config.folder)
    files, left_out = carried(config.folder)
    contents: Contents = {**files}
    contents[CARD] = _card(config.folder, config.license, config.to.name)
    with created(config.to, "to") as temporary, tempfile.TemporaryDirectory() as aside:
        if config.plain:
            contents = _plain(config.folder, contents, Path(aside))
        for name, content in _with_sums(config.folder, contents).items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, temporary / name)
            else:
                (temporary / name).write_bytes(content)
    size = sum(path.stat().st_size for path in config.to.rglob("*") if path.is_file())
    return {"folder": str(config.to), "bytes": size, "left_out": left_out}


def _plain(folder: Path, contents: Contents, aside: Path) -> Contents:
    """The same as the original's architecture has it.

    Args:
        aside: a folder for files that are to be copied.
    """
    plain = plain_config(folder)
    native = native_model(folder, plain)
    left_out = set(CODE)
    if is_mixture(folder):
        left_out |= {name for name in contents if name.startswith("model")}
        contents |= {path.name: path for path in native_weights(folder, native, aside)}
        left_out -= {path.name for path in aside.iterdir()}
    contents["config.json"] = (json.dumps(plain, indent=2) + "\n").encode()
    card = contents[CARD]
    assert isinstance(card, bytes), "names its place already"
    for words in ONLY_OURS:
        card = card.replace(words.encode(), b"")
    contents[CARD] = card
    return {name: content for name, content in contents.items() if name not in left_out}


def push(config: PushConfig) -> dict[str, Any]:
    """Uploads a folder to a repository of the hub, which is made where there is none.

    Raises:
        InputError: not an exported folder, or one with damaged files, links or code of others; no
            such account, or no right to write; or the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    require_exported(config.folder)
    files, left_out = carried(config.folder)
    _card(config.folder, config.license, config.name)  # is whole, before a repository is made
    api = HfApi()
    try:
        made = api.create_repo(config.name, private=config.private, exist_ok=True)
        card = _card(config.folder, config.license, made.repo_id)
        contents = _with_sums(config.folder, files | {CARD: card})
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
    return {"name": made.repo_id, "url": str(made), "commit": commit.oid, "left_out": left_out}


def carried(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The files that go along, by name, and the names of the others, of which a line warns.

    Raises:
        InputError: a file is damaged, a link, or code of others.
    """
    files, left_out = belongings(folder)
    for problem in folder_problems(folder, but=(CARD,)) if SUMS in files else ():
        raise problem.error  # but of cards, which are edited by hand
    if left_out:
        names = ", ".join(name if name.isprintable() else ascii(name) for name in left_out)
        logger.warning("left out, as no part of a model folder: %s", names)
    return files, left_out


def keep_license(before: Path, folder: Path) -> None:
    """Gives a card that was written anew the licence that the card had before.

    Raises:
        InputError: a card is damaged.
    """
    license = _model_card(before).data.license
    (folder / CARD).write_bytes(_card(folder, license or "", PLACE))


def _card(folder: Path, license: str, place: str) -> bytes:
    """The folder's card that names the place, and a licence if one is given.

    Raises:
        InputError: it is damaged.
    """
    card = _model_card(folder)
    if license:
        card.data.__dict__["license"] = license
    card.text = card.text.replace(PLACE, in_code(place))
    return str(card).encode()


def _model_card(folder: Path) -> Any:
    """The card of a folder, as the hub's own library reads it.

    Raises:
        InputError: it is damaged.
    """
    from huggingface_hub import ModelCard

    path = folder / CARD
    try:
        return ModelCard(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError) as error:
        raise InputError(
            "is damaged", field=str(path), hint="correct its head, or export the folder again"
        ) from error


def _with_sums(folder: Path, contents: Contents) -> Contents:
    """The same contents with their own sums."""
    known = read_sums(folder)

    def sum_of(name: str, content: Path | bytes) -> str:
        if isinstance(content, bytes):
            return hashlib.sha256(content).hexdigest()
        return known.get(name) or sha256(content)

    sums = {name: sum_of(name, content) for name, content in contents.items() if name != SUMS}
    return contents | {SUMS: sums_text(sums).encode()}
