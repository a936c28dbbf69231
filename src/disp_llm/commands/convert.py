"""An exported folder in another format: to a place of its own, or to the hub."""

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from disp_llm.commands.api import called, takes
from disp_llm.config.commands import ConvertConfig, PushConfig
from disp_llm.config.errors import InputError
from disp_llm.config.parts import TextConfig
from disp_llm.exporter.card import PLACE
from disp_llm.exporter.exported import exported_config, model_files
from disp_llm.exporter.facts import CARD
from disp_llm.exporter.formats import Contents, Job, writer_of
from disp_llm.runs.lock import created
from disp_llm.runs.markdown import in_code
from disp_llm.runs.progress import ProgressCallback, counting, silent
from disp_llm.runs.sums import SUMS, sha256, sums_text, write_sums

COMMIT = "Upload a model pruned by disp-llm"


@takes(ConvertConfig)
def convert(folder: ConvertConfig | str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Writes an exported folder in another format.

    Returns:
        `folder`, `to`, `bytes` of all files, and the names of those that were `left_out`.
    """
    call = called(ConvertConfig, folder, options)
    config, place = call.config, call.config.output_dir
    with created(place, "output_dir") as new, call.watching() as progress:
        aside = new / ".aside"
        aside.mkdir(parents=True)
        job, left_out = _job(config, place.name, aside, progress)
        for name, content in writer_of(config.to).write(job).items():
            _put(content, new / name, aside)
        shutil.rmtree(aside)
        write_sums(new)
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    return {"folder": str(place), "to": config.to, "bytes": size, "left_out": left_out}


def _job(
    config: ConvertConfig | PushConfig, place: str, aside: Path, progress: ProgressCallback
) -> tuple[Job, list[str]]:
    """What a format writes, once it has been checked, and the files that are left out."""
    exported_config(config.folder)
    writer_of(config.to).check(config.folder)
    files, left_out = model_files(config.folder)
    files.pop(SUMS, None)
    text, device = TextConfig(), "auto"
    if isinstance(config, ConvertConfig):
        text, device = config.calibration, config.device
    rounding = counting(progress, "rounding blocks")
    return Job(config.folder, files, place, aside, text, device, rounding), left_out


def _put(content: Path | bytes, path: Path, aside: Path) -> None:
    """Writes a file: new ones are moved, those of the folder are copied."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content.is_relative_to(aside):
        content.rename(path)
    else:
        shutil.copyfile(content, path)


@takes(PushConfig)
def push(folder: PushConfig | str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Uploads an exported folder to a repository of the hub, which is made where there is none.

    Returns:
        `name`, `url`, `commit`, and the names of the files that were `left_out`.

    Raises:
        InputError: not an exported folder, or one with damaged files, links or code of others; no
            such account, or no right to write; or the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    config = called(PushConfig, folder, options).config
    with tempfile.TemporaryDirectory() as aside:
        job, left_out = _job(config, PLACE, Path(aside), silent)
        contents = writer_of(config.to).write(job)  # is whole, before a repository is made
        api = HfApi()
        try:
            made = api.create_repo(config.name, private=config.private, exist_ok=True)
            if isinstance(card := contents.get(CARD), bytes):
                contents[CARD] = card.replace(PLACE.encode(), in_code(made.repo_id).encode())
            contents[SUMS] = _sums(contents)
            commit = api.create_commit(
                made.repo_id,
                [CommitOperationAdd(name, content) for name, content in contents.items()],
                commit_message=COMMIT,
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


def _sums(contents: Contents) -> bytes:
    """What `SHA256SUMS` holds of these files."""
    sums = {
        name: sha256(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
        for name, content in contents.items()
    }
    return sums_text(sums).encode()
