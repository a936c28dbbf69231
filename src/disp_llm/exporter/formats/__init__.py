"""Formats that an exported folder can be written in: a file each, and its name as the row.

A format is a module here with two functions, named as it is (`-` becomes `_`). `check(folder)`
refuses in one line what the format cannot hold. `write(job)` fills the new folder. Its row is its
name in `disp_llm.config.names.Format`, and that of a program that reads it alone in
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
from disp_llm.exporter.card import PLACE, filled
from disp_llm.exporter.facts import CARD, FACTS, facts_in
from disp_llm.runs.files import write_json
from disp_llm.runs.markdown import in_code


@dataclass(frozen=True)
class Job:
    """An exported folder that is written in another format."""

    folder: Path
    files: dict[str, Path]
    """The files of it that belong to the model, by name."""
    place: str
    """What the card calls the new place."""
    new: Path
    """The folder that is filled."""
    text: TextConfig
    """What a calibration reads; it may name no text."""
    device: str
    progress: Callable[[int, int], None]
    embeddings: bool = False
    """Whether embedding and head are quantised too, where the blocks are."""
    put: Callable[[Path, Path], Any] = shutil.copyfile
    """Gives the new folder a file of the model as it is."""

    def take(self, *but: str) -> None:
        """Takes over files of the model, all but some, and the card with its figures."""
        for name in self.files.keys() - {CARD, FACTS, *but}:
            path = self.new / name
            path.parent.mkdir(exist_ok=True)
            self.put(self.files[name].resolve(), path)


def writer_of(name: Format) -> Any:
    """The module of a format, imported when it is asked for."""
    return import_module(f"{__name__}.{name.replace('-', '_')}")


def share_card(job: Job, form: str, size: int = 0, quantised: Any = None) -> None:
    """Writes the card of a folder in another format, and the figures behind it. A card without such
    figures goes along as it is; a copy keeps what was added by hand.

    Args:
        form: `folder`, `quantised`, `plain`, `gguf` or `nemotron-nas`.
        size: bytes of the weights; 0 = as before.
        quantised: how, if they are.
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
    """A card, as the hub's own library reads it."""
    try:
        return ModelCard(content.decode())
    except (ValueError, YAMLError) as error:
        raise InputError(
            "is damaged", field=str(path), hint="correct its head, or export the folder again"
        ) from error
