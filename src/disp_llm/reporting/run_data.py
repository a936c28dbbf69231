"""A run folder -> what its page shows; a run that was interrupted has what there is."""

import base64
import io
import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from disp_llm.config.errors import InputError
from disp_llm.masks.layout import STREAM_SITES
from disp_llm.reporting.reading import bench_rows
from disp_llm.runs.files import read_json
from disp_llm.runs.folder import Run
from disp_llm.runs.results import (
    BenchComparison,
    BenchRow,
    DenseResult,
    Perplexity,
    SizeResult,
    from_json,
)

KEPT_COLOR = (11, 110, 153)
"""Of a kept dimension, as in the plots."""


@dataclass(frozen=True)
class SizeData:
    """One size of a run."""

    figures: SizeResult
    widths: dict[str, list[int]]
    """Kept entries of every site, block by block."""
    stream: dict[str, str]
    """Pictures of the sites of the residual stream, as data URLs."""

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(next(iter(self.widths.values())))


@dataclass(frozen=True)
class Recovery:
    """Perplexities of a run of `recover`."""

    before: Perplexity
    after: Perplexity
    teacher: Perplexity | None
    keep: float | None


@dataclass(frozen=True)
class BenchData:
    """A benchmark that lies in the run folder."""

    cpu: str
    rows: list[tuple[BenchComparison, BenchRow, BenchRow]]


@dataclass(frozen=True)
class RunData:
    """What the page shows of one run."""

    name: str
    model: str
    command: str
    """Which one made the run: `prune` or `recover`."""
    status: str
    figures: dict[str, Any]
    """What `result.json` holds."""
    dense: DenseResult | None
    sizes: list[SizeData]
    curve: list[tuple[float, float]]
    """Keep and perplexity of every point, where a curve was measured."""
    recovery: Recovery | None
    metrics: list[dict[str, Any]]
    """The lines of `metrics.jsonl`."""
    settings: list[tuple[str, Any]]
    bench: BenchData | None


def read_run(run: Run) -> RunData:
    """What the page shows of one run.

    Raises:
        InputError: the folder is no run, or a file is damaged or not what it was.
    """
    settings, figures, file = _settings(run), run.result(), str(run.result_file)
    run.require_whole()
    recovers = "folder" in settings
    return RunData(
        name=run.folder.resolve().name,
        model=settings["folder" if recovers else "model"],
        command="recover" if recovers else "prune",
        status=figures.get("status", "not begun"),
        figures=figures,
        dense=from_json(DenseResult, figures["dense"], file) if "dense" in figures else None,
        sizes=_sizes(run, [from_json(SizeResult, m, file) for m in figures.get("models", [])]),
        curve=[(point["keep"], point["perplexity"]) for point in figures.get("curve", [])],
        recovery=_recovery(figures, file) if recovers else None,
        metrics=_metrics(run.metrics_file),
        settings=list(_flat(settings)),
        bench=_bench(run.folder / "bench.json"),
    )


def _settings(run: Run) -> dict[str, Any]:
    if not run.config_file.exists():
        raise InputError(
            f"{run.folder} is not a run folder",
            field="runs",
            hint="name the `output_dir` of a `disp-llm prune` or `disp-llm recover`",
        )
    try:
        return tomllib.loads(run.config_file.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(
            f"damaged ({error})", field=str(run.config_file), hint="report another run"
        ) from error


def _recovery(figures: dict[str, Any], file: str) -> Recovery | None:
    """None until the model has been trained."""
    if "model" not in figures:
        return None
    found = {key: figures[key] for key in ("before", "model", "teacher") if key in figures}
    measured = {key: from_json(Perplexity, values, file) for key, values in found.items()}
    return Recovery(
        measured["before"], measured["model"], measured.get("teacher"), figures["model"].get("keep")
    )


def _bench(path: Path) -> BenchData | None:
    """What `disp-llm bench --json` printed there, if anything."""
    hint = "write it again by `disp-llm bench … --json`, or delete it"
    if not path.exists():
        return None
    found = read_json(path, hint)
    if "comparisons" not in found:
        raise InputError("holds no comparison", field=str(path), hint=hint)
    return BenchData(found["hardware"]["cpu"], bench_rows(found, str(path)))


def _sizes(run: Run, models: list[SizeResult]) -> list[SizeData]:
    """Figures of every size, and pictures of its masks."""
    return [_size(run.masks_file(model.size, models[0].size), model) for model in models]


def _size(masks_file: Path, figures: SizeResult) -> SizeData:
    kept = _kept_indices(masks_file)
    blocks = 1 + max(int(name.split(".")[1]) for name in kept)

    def of_site(site: str) -> list[np.ndarray]:
        return [kept[f"layers.{i}.{site}"] for i in range(blocks)]

    there = {name.split(".")[2] for name in kept}
    full = figures.widths_full
    return SizeData(
        figures,
        widths={site: [len(part) for part in of_site(site)] for site in full if site in there},
        stream={site: _bitmap(of_site(site), full[site]) for site in STREAM_SITES},
    )


def _kept_indices(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="np") as file:
            names = [name for name in file.keys() if name.startswith("layers.")]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"cannot be read ({error})", field=str(path), hint="export the size again"
        ) from error


def _bitmap(rows: list[np.ndarray], width: int) -> str:
    """A row for each block, a column for each dimension of the residual stream; pruned ones are
    transparent."""
    from matplotlib.image import imsave

    pixels = np.zeros((len(rows), width, 4), dtype=np.uint8)
    pixels[..., :3] = KEPT_COLOR
    for place, kept in enumerate(rows):
        pixels[place, kept, 3] = 255
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a log; the last may have been cut off by a kill."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _flat(table: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
