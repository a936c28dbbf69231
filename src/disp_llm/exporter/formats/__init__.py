"""Formats that an exported folder can be converted to, one module each.

A module has the name of its format (`-` becomes `_`) and two functions: `check(folder)` refuses in
one line what the format cannot hold, and `write(job)` fills the new folder. The format is also
listed in `disp_llm.config.names.Format`, and a program that reads no other format in
`disp_llm.config.engines`.
"""

import shutil
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
from disp_llm.data.windows import Corpus
from disp_llm.exporter.card import PLACE, filled
from disp_llm.exporter.facts import CARD, FACTS, facts_in
from disp_llm.runs.files import write_json
from disp_llm.runs.markdown import in_code


@dataclass(frozen=True)
class Job:
    """The conversion of an exported folder to another format."""

    folder: Path
    files: dict[str, Path]
    """Files of the folder that belong to the model, by name."""
    place: str
    """Name of the new place in the card."""
    new: Path
    """Folder to fill."""
    text: TextConfig
    """Text for calibration; it may name none."""
    device: str
    progress: Callable[[int, int], None]
    embeddings: bool = False
    """Whether a quantised format also quantises embedding and head."""
    put: Callable[[Path, Path], Any] = shutil.copyfile
    """Puts an unchanged file of the model into the new folder."""
    corpus: Corpus | None = None
    """Tokens for calibration, in place of `text`."""

    def take(self, *but: str) -> None:
        """Takes over the model's files except the named ones, the card and `card.json`."""
        for name in self.files.keys() - {CARD, FACTS, *but}:
            path = self.new / name
            path.parent.mkdir(exist_ok=True)
            self.put(self.files[name].resolve(), path)


def writer_of(name: Format) -> Any:
    """Imports and returns the module of a format."""
    return import_module(f"{__name__}.{name.replace('-', '_')}")


def share_card(job: Job, form: str, size: int = 0, quantised: Any = None) -> None:
    """Writes the card of a converted folder and, except for `gguf`, its `card.json`. For a copy
    (`folder`) or without a `card.json`, it only changes the model's place in the card, so that
    edits by hand stay.

    Args:
        form: `folder`, `quantised`, `plain`, `gguf` or `nemotron-nas`.
        size: bytes of the weights; 0 = as before.
        quantised: values of `Quantised`; None if the weights were not quantised.
    """
    facts = None
    if FACTS in job.files and form == "folder":
        job.put(job.files[FACTS].resolve(), job.new / FACTS)
    elif FACTS in job.files:
        facts = facts_in(job.files[FACTS])
        facts["figures"] |= {"bytes": size} if size else {}
        facts["result"] |= {"quantised": quantised} if quantised else {}
        if form != "gguf":
            write_json(job.new / FACTS, facts)
    if CARD not in job.files:
        return
    card = before = _model_card(job.files[CARD].read_bytes(), job.files[CARD])
    if facts is not None:
        card = _model_card(filled(facts, str(job.files[FACTS]), form).encode(), job.files[CARD])
        card.data.__dict__["license"] = before.data.license
    card.text = card.text.replace(PLACE, in_code(job.place))
    (job.new / CARD).write_bytes(str(card).encode())


def _model_card(content: bytes, path: Path) -> Any:
    """Parses a card by the hub's own library."""
    try:
        return ModelCard(content.decode())
    except (ValueError, YAMLError) as error:
        raise InputError(
            "is damaged", field=str(path), hint="correct its head, or export the folder again"
        ) from error
