"""Reads from a run folder what its page shows; an interrupted run shows what it has so far."""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from disp_llm.config.errors import InputError
from disp_llm.config.recipes import flat, resolved
from disp_llm.config.recover import RecoverConfig
from disp_llm.config.schema import AtLeastOne, as_type
from disp_llm.masks.layout import STREAM_SITES
from disp_llm.masks.selection_file import kept_by_site
from disp_llm.runs.folder import Run
from disp_llm.runs.results import RunFigures, SizeResult
from disp_llm.runs.scores import Finite
from disp_llm.runs.settings import stored_settings

KEPT_COLOR = (11, 110, 153)
"""RGB colour of a kept dimension, as in the plots."""


@dataclass(frozen=True)
class SizeData:
    """One size of a run."""

    figures: SizeResult
    widths: dict[str, list[int]]
    """Kept entries of every site, block by block."""
    full: dict[str, list[int]]
    """Entries of every site in the original, block by block."""
    whole: list[str]
    """Sites that are whole in every block."""
    stream: dict[str, str]
    """Images, as data URLs, of the cut sites of the residual stream."""


@dataclass(frozen=True)
class Step:
    """The part of a line of `metrics.jsonl` that the page shows."""

    step: AtLeastOne
    tokens: AtLeastOne
    loss: Finite


@dataclass(frozen=True)
class RunData:
    """What the page shows of one run."""

    name: str
    command: str
    """Command that made the run: `prune` or `recover`."""
    figures: RunFigures | None
    """Content of `result.json`; None before it is written."""
    sizes: list[SizeData]
    steps: list[Step]
    """Lines of `metrics.jsonl`."""
    settings: dict[str, Any]
    """Settings by their place in `config.toml`, such as `learn.steps`."""


def read_run(run: Run) -> RunData:
    """Reads what the page shows of one run."""
    settings, found = stored_settings(run.folder), run.figures
    shown = (run.config_file, run.selection_file, run.metrics_file)
    run.require_whole(*(file for file in shown if file.name in run.files))  # shows no weights
    return RunData(
        name=run.folder.resolve().name,
        command="recover" if isinstance(settings, RecoverConfig) else "prune",
        figures=found,
        sizes=[_size(run.selection_file, model) for model in found.models] if found else [],
        steps=_steps(run.metrics_file),
        settings=dict(flat(resolved(settings))),
    )


def _size(selection: Path, figures: SizeResult) -> SizeData:
    kept, full = kept_by_site(selection, figures.size)
    widths = {site: [len(part) for part in parts] for site, parts in kept.items()}
    whole = [site for site, numbers in widths.items() if numbers == full[site]]
    cut = [site for site in STREAM_SITES if site not in whole]
    stream = {site: _bitmap(kept[site], full[site][0]) for site in cut}
    return SizeData(figures, widths, full, whole, stream)


def _bitmap(rows: list[Tensor], width: int) -> str:
    """Draws a PNG, as a data URL, with a row per block and a column per dimension of the residual
    stream; pruned ones are transparent."""
    from matplotlib.image import imsave

    pixels = np.zeros((len(rows), width, 4), dtype=np.uint8)
    pixels[..., :3] = KEPT_COLOR
    for place, kept in enumerate(rows):
        pixels[place, kept.numpy(), 3] = 255
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _steps(path: Path) -> list[Step]:
    """Reads the lines of a log; ignores a last line that was cut off when the run was killed."""
    field, hint = str(path), "delete it; the page is then without the curve of the loss"
    try:
        lines = path.read_text(encoding="utf-8").splitlines(True) if path.exists() else []
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read ({error})", field=field, hint=hint) from error
    found: list[Step] = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            if not line.endswith("\n"):
                break
            raise InputError(f"line {number} is damaged", field=field, hint=hint) from error
        found.append(as_type(values, Step, field=field, hint=hint, place=f"line {number}"))
    return found
