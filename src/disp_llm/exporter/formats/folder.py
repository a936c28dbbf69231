"""A copy of an exported folder to share: what belongs in it, and a card that names its place."""

from pathlib import Path

from disp_llm.exporter.formats import Job, share_card


def check(folder: Path) -> None:
    """Any folder can be copied."""


def write(job: Job) -> None:
    """Takes over all files but the card."""
    job.take()
    share_card(job, "folder")
