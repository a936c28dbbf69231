"""A copy of an exported folder to share: what belongs in it, and a card that names its place."""

from pathlib import Path

from disp_llm.exporter.formats import Contents, Job, shared_card


def check(folder: Path) -> None:
    """Any folder can be copied."""


def write(job: Job) -> Contents:
    """The files of the folder as they are, but for the card."""
    return {**job.files, **shared_card(job, "folder")}
