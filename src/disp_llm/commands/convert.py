"""Writes an exported folder in another format: to a place of its own, or to the hub."""

import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from disp_llm.commands.api import called, takes
from disp_llm.config.commands import ConvertConfig, PushConfig
from disp_llm.config.errors import InputError
from disp_llm.config.parts import TextConfig
from disp_llm.data.windows import Corpus
from disp_llm.exporter.card import PLACE
from disp_llm.exporter.exported import exported_config, model_files
from disp_llm.exporter.facts import CARD
from disp_llm.exporter.formats import Job, writer_of
from disp_llm.runs.lock import created
from disp_llm.runs.markdown import in_code
from disp_llm.runs.progress import ProgressCallback, counting, silent
from disp_llm.runs.sums import SUMS, write_sums

COMMIT = "Upload a model pruned by disp-llm"

WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
"""Weight files that transformers loads from a repository: a single file before several parts."""


@takes(ConvertConfig)
def convert(folder: ConvertConfig | str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Writes an exported folder in another format.

    Returns:
        `folder`, `to`, `bytes` of all files, and the names of those that were `left_out`.
    """
    call = called(ConvertConfig, folder, options)
    with call.watching() as progress:
        return write_converted(call.config, progress)


def write_converted(
    config: ConvertConfig, progress: ProgressCallback, corpus: Corpus | None = None
) -> dict[str, Any]:
    """Writes the new folder. int4 is calibrated on `corpus`, if given, in place of the text that
    the settings name."""
    place = config.output_dir
    with created(place, "output_dir") as new:
        job, left_out = _job(config, place.name, new, progress)
        new.mkdir(parents=True)
        writer_of(config.to).write(replace(job, corpus=corpus))
        write_sums(new)
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    return {"folder": str(place), "to": config.to, "bytes": size, "left_out": left_out}


def _job(
    config: ConvertConfig | PushConfig, place: str, new: Path, progress: ProgressCallback
) -> tuple[Job, list[str]]:
    """Checks the folder; returns a format's job, and the files that are left out."""
    exported_config(config.folder)
    writer_of(config.to).check(config.folder)
    files, left_out = model_files(config.folder)
    files.pop(SUMS, None)
    text, device, embeddings = TextConfig(), "auto", False
    if isinstance(config, ConvertConfig):
        text, device, embeddings = config.calibration, config.device, config.embeddings
    writing = counting(progress, f"writing {config.to}")
    return Job(config.folder, files, place, new, text, device, writing, embeddings), left_out


def _link(source: Path, place: Path) -> None:
    """Links a file into place, which takes no room; copies it if the system has no links."""
    try:
        place.symlink_to(source)
    except OSError:
        shutil.copyfile(source, place)


@takes(PushConfig)
def push(folder: PushConfig | str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Uploads an exported folder to a hub repository, which is created if there is none.

    Returns:
        `name`, `url`, `commit`, and the names of the files that were `left_out`.

    Raises:
        InputError: not an exported folder, or one with damaged files, links or code of others; no
            such account, or no right to write; or the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    config = called(PushConfig, folder, options).config
    with tempfile.TemporaryDirectory() as temporary:
        new = Path(temporary)
        job, left_out = _job(config, PLACE, new, silent)
        writer_of(config.to).write(replace(job, put=_link))  # whole, before a repository is made
        api = HfApi()
        try:
            made = api.create_repo(config.name, private=config.private, exist_ok=True)
            if (card := new / CARD).exists():
                text = card.read_text(encoding="utf-8")
                card.write_text(text.replace(PLACE, in_code(made.repo_id)), encoding="utf-8")
            write_sums(new)
            paths = [path for path in sorted(new.rglob("*")) if path.is_file()]
            files = {path.relative_to(new).as_posix(): path for path in paths}
            stale = set[str]()
            if any(map(WEIGHTS.fullmatch, files)):  # else an old single file would be loaded
                there = api.list_repo_files(made.repo_id)
                stale = {*filter(WEIGHTS.fullmatch, there)} - files.keys()
            changes = [
                *(CommitOperationAdd(name, path) for name, path in files.items()),
                *(CommitOperationDelete(name) for name in sorted(stale)),
            ]
            commit = api.create_commit(made.repo_id, changes, commit_message=COMMIT)
        # The hub error's bases are the HTTP client's error and OSError.
        except (*HfHubHTTPError.__bases__, HFValidationError) as error:
            why = next((line for line in str(error).splitlines() if line.strip()), str(error))
            raise InputError(
                f"cannot push to {config.name} ({why.strip(' .')})",
                field="name",
                hint="check the name, the network and `hf auth login`",
            ) from error
    return {"name": made.repo_id, "url": str(made), "commit": commit.oid, "left_out": left_out}
