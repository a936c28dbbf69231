"""Finds the files that make up a local model."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from disp_llm.config.errors import InputError
from disp_llm.config.schema import as_type
from disp_llm.models.wholeness import AGAIN
from disp_llm.runs.files import read_json
from disp_llm.runs.ownership import FACTS
from disp_llm.runs.sums import CHANGED_FOLDER, read_sums, sha256_of

logger = logging.getLogger(__name__)

PROCESSOR = (
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    "chat_template.json",
)
"""Files that transformers reads to build the processor of a multimodal model."""

READ = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja"),
    *PROCESSOR,
)
"""Files that transformers reads from a folder besides weights."""

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""A model's only weight file, or the index of several."""


@dataclass(frozen=True)
class Index:
    """The index of a folder with several weight files."""

    weight_map: dict[str, Annotated[str, msgspec.Meta(pattern=r"^[^/]+\.safetensors$")]]
    """File of every weight. Only .safetensors: transformers would unpickle other kinds."""


def files_of(path: Path) -> list[Path]:
    """Returns the files of a local model, sorted; a GGUF file is the whole model. Empty if the path
    does not exist."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    named = {path / name for name in (*READ, INDEX)} | {*weight_files(path)}
    return sorted(file for file in named if file.is_file())


def weight_files(folder: Path) -> list[Path]:
    """Returns the weight files that transformers would read from a model folder, sorted. Empty if
    there is no such folder."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    path = folder / INDEX
    if not path.is_file():
        return []
    index = as_type(read_json(path, AGAIN), Index, field=str(path), hint=AGAIN)
    return [folder / name for name in sorted(set(index.weight_map.values()))]


def fingerprint(path: Path) -> str:
    """Returns the SHA-256 of the names and contents of a local model's files; "" if there are none.

    Raises:
        InputError: the folder has SHA256SUMS, and a file is missing or differs from them.
    """
    sums = read_sums(path) if path.is_dir() else {}
    if (path / FACTS).is_file() and not sums:
        logger.warning("%s has no SHA256SUMS: nothing tells whether its files are whole", path)
    digests = {file.name: digest for file, digest in sha256_of(files_of(path)).items()}
    for name, written in sums.items():
        weights = name.endswith(".safetensors") and "/" not in name
        if (weights or name in (*READ, INDEX)) and digests.get(name) != written:
            what = "is not the file that was written" if name in digests else "is missing"
            raise InputError(what, field=str(path / name), hint=CHANGED_FOLDER)
    lines = [f"{digest} {name}\n" for name, digest in digests.items()]
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}" if digests else ""


def hub_place(name: str) -> tuple[str, str]:
    """Splits `ORG/NAME@REVISION` into repository and revision, by default `main`. A local path is
    returned whole."""
    repository, at, revision = name.partition("@")
    return (name, "main") if not at or Path(name).exists() else (repository, revision)
