"""Format `folder`: a copy to share, with the model's files only and a card that names its place."""

from pathlib import Path

from disp_llm.exporter.formats import Job, share_card


def check(folder: Path) -> None:
    """Any folder can be copied."""


def write(job: Job) -> None:
    """Takes over all files of the model, and writes the card."""
    job.take()
    share_card(job, "folder")
