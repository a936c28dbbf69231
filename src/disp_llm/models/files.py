"""The files of a local model: which of them are the model, and which are refused unread."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disp_llm.config.errors import InputError
from disp_llm.config.schema import as_type
from disp_llm.models.wholeness import AGAIN, first_of
from disp_llm.runs.ownership import FACTS
from disp_llm.runs.sums import CHANGED_FOLDER, read_sums, sha256_of
from disp_llm.runs.tensors import opened

logger = logging.getLogger(__name__)

PROCESSOR = (
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    "chat_template.json",
)
"""What transformers reads of a folder to make the processor of a model that sees or hears."""

READ = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja"),
    *PROCESSOR,
)
"""What transformers reads of a folder besides its weights."""

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The one file of weights of a model, or the index of several."""

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Kinds of files that can hold weights, and run whatever code lies in them when they are opened."""


@dataclass(frozen=True)
class Index:
    """What a folder of several files of weights says of them."""

    weight_map: dict[str, str]
    """The file of every weight."""


def files_of(path: Path) -> list[Path]:
    """The files that a local model consists of, sorted; a GGUF file is one. None of a place that
    does not exist."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    named = {path / name for name in (*READ, INDEX)} | {*weight_files(path)}
    return sorted(file for file in named if file.is_file())


def weight_files(folder: Path) -> list[Path]:
    """The files of a model folder that its weights are read from, sorted: as transformers chooses
    them, whatever else lies there. None where there is no such folder."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    path = folder / INDEX
    if not path.is_file():
        return []
    index = as_type(_object(path), Index, field=str(path), hint=AGAIN)
    return [folder / name for name in sorted(set(index.weight_map.values()))]


def fingerprint(path: Path) -> str:
    """SHA-256 over the names and the whole content of the files of a local model; empty where there
    is none.

    Raises:
        InputError: the folder has sums of its files, and one is not as they say.
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


def require_readable(path: Path) -> None:
    """Refuses a local model with pickled weights, a damaged file, or fewer files of weights than
    its index names.

    transformers would open pickled weights, and says nothing of some files that it cannot read. A
    place that does not exist passes: it may be the name of a model on the hub.

    Raises:
        InputError: naming the file.
    """
    weights = weight_files(path)
    there = [file for file in (path.iterdir() if path.is_dir() else [path]) if file.is_file()]
    pickled = [file.name for file in there if file.suffix in PICKLED]
    if pickled and not weights:
        raise pickled_weights(str(path), f" ({first_of(pickled)})")
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(
            f"cannot load '{path}' (it has no config.json)",
            field="model",
            hint=f"name a model folder, or {AGAIN}",
        )
    for file in (path / name for name in READ if name.endswith(".json")):
        if file.is_file():
            _object(file)
    there = [file for file in there if file.suffix == ".safetensors"]
    absent = [str(file.relative_to(path)) for file in weights if file not in there]
    if absent:
        raise InputError(f"lacks {first_of(absent)}", field=str(path), hint=AGAIN)
    for file in weights:
        with opened(file, AGAIN):
            pass


def pickled_weights(name: str, which: str = "") -> InputError:
    """What is said of weights that could run code."""
    return InputError(
        f"'{name}' has pickled weights{which}, which can run any code when they are opened",
        field="model",
        hint="where you trust it, convert it by `AutoModelForCausalLM.from_pretrained(MODEL)"
        ".save_pretrained(FOLDER)`, which writes safetensors, and name that folder",
    )


def _object(file: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        InputError: it holds something else, or NaN, with which a model would compute.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_nan)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"is not JSON ({error})", field=str(file), hint=AGAIN) from error
    if not isinstance(found, dict):
        raise InputError("holds no JSON object", field=str(file), hint=AGAIN)
    return found


def _no_nan(constant: str) -> float:
    if constant == "NaN":
        raise ValueError("NaN in place of a number")
    return float(constant)


def hub_place(name: str) -> tuple[str, str]:
    """The repository and the revision that a name means: `ORG/NAME@REVISION`, by default `main`; a
    local path means itself."""
    repository, at, revision = name.partition("@")
    return (name, "main") if not at or Path(name).exists() else (repository, revision)
