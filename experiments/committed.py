"""Committed results in the present form: their files stay as they were measured."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from disp_llm.runs.results import Perplexity

GROUPS = ("measured", "scores", "logit_errors", "speed")
"""Parts of a result that lie one level higher in committed files."""


def read_committed(path: Path) -> Any:
    """What a committed file of results holds."""
    return json.loads(path.read_text())


def as_committed(found: Any) -> Any:
    """What a command prints in the form of committed files: on one level."""
    if isinstance(found, list):
        return [as_committed(part) for part in found]
    if not isinstance(found, dict):
        return found
    told = {key: as_committed(part) for key, part in found.items()}
    for group in GROUPS:
        if isinstance(told.get(group), dict):
            told |= told.pop(group)
    if "share_asked" in told:
        told["keep_asked" if told["budget"] == "params" else "target"] = told.pop("share_asked")
    return told


def as_compared(result: dict) -> dict:
    """A committed comparison as `compare` writes it: figures of a kind in a part of their own."""
    measured = {field.name for field in fields(Perplexity)}
    timed = ("prefill_", "decode_")
    rows = [
        _nested(row, "speed", {name for name in row if name.startswith(timed)})
        for row in result["rows"]
    ]
    return result | {"original": _nested(result["original"], "measured", measured), "rows": rows}


def _nested(figures: dict, part: str, names: set[str]) -> dict:
    if part in figures:
        return figures
    told = {name: value for name, value in figures.items() if name not in names}
    there = {name: value for name, value in figures.items() if name in names and value is not None}
    return told | {part: there}
