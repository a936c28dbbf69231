"""Formats that an exported folder can be written in: a file each, and its name as the row.

A format is a module here with two functions. `check(folder)` refuses in one line what the format
cannot hold. `write(job)` says what the new folder holds. Its row is its name in
`disp_llm.config.names.Format`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from yaml import YAMLError

from disp_llm.config.errors import InputError
from disp_llm.config.names import Format
from disp_llm.config.parts import TextConfig
from disp_llm.exporter.card import PLACE, changed_facts, filled
from disp_llm.exporter.facts import CARD, FACTS
from disp_llm.runs.markdown import in_code

Contents = dict[str, Path | bytes]
"""What a folder will hold, by name: a file as it is, or other bytes."""


@dataclass(frozen=True)
class Job:
    """An exported folder that is written in another format."""

    folder: Path
    files: dict[str, Path]
    """The files of it that belong to the model, by name."""
    place: str
    """What the card calls the new place."""
    aside: Path
    """A folder for new files, which may be the new place itself."""
    text: TextConfig
    """What a calibration reads; it may name no text."""
    device: str
    progress: Callable[[int, int], None]


def writer_of(name: Format) -> Any:
    """The module of a format, imported when it is asked for."""
    return import_module(f"{__name__}.{name}")


def json_bytes(value: dict[str, Any]) -> bytes:
    """What a file of JSON holds."""
    return (json.dumps(value, indent=2) + "\n").encode()


def shared_card(job: Job, form: str, size: int = 0, quantised: Any = None) -> Contents:
    """The card of a folder that is written in another format, and the figures behind it. A card
    without such figures goes along as it is; a copy keeps what was added by hand.

    Args:
        form: `folder`, `quantised`, `plain` or `gguf`.
        size: bytes of the weights; 0 = as before.
        quantised: how, if they are.
    """
    if CARD not in job.files:
        return {}
    before = _model_card(job.files[CARD].read_bytes(), job.files[CARD])
    made: Contents = {}
    card = before
    if form != "folder" and FACTS in job.files:
        told = {"quantised": quantised} if quantised else {}
        facts = changed_facts(job.folder, {"bytes": size} if size else {}, told)
        text = filled(facts, str(job.files[FACTS]), form)
        card = _model_card(text.encode(), job.files[CARD])
        card.data.__dict__["license"] = before.data.license
        made = {} if form == "gguf" else {FACTS: json_bytes(facts)}
    card.text = card.text.replace(PLACE, in_code(job.place))
    return {CARD: str(card).encode(), **made}


def _model_card(content: bytes, path: Path) -> Any:
    """A card, as the hub's own library reads it."""
    try:
        return ModelCard(content.decode())
    except (ValueError, YAMLError) as error:
        raise InputError(
            "is damaged", field=str(path), hint="correct its head, or export the folder again"
        ) from error
