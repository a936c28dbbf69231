"""Runs -> one page that stands alone: no network; light, dark, phone, print and screen reader.

Everything is read from run folders, so a run that was interrupted has a page too, with what there
is. The template `report.html` holds all markup; here are the numbers and the geometry of charts.

L blocks, D residual stream.
"""

import base64
import io
import json
import math
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from safetensors import SafetensorError, safe_open

from disp_llm.commands import ReportCommand
from disp_llm.config import InputError
from disp_llm.evaluate import with_error
from disp_llm.files import atomic, read_json
from disp_llm.masks import STREAM_SITES
from disp_llm.runs import Run

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 240, 52, 34
"""Of a chart, and the room for its labels, in its own units."""

ACCENT = (11, 110, 153)
"""Of a kept dimension, as in the plots."""

SMOOTH = 0.9
"""Memory of the moving average that is drawn over the loss of single windows."""


@dataclass(frozen=True)
class Line:
    """One series of a chart, in chart units."""

    name: str
    points: str
    marks: list[tuple[float, float, str]]
    """Places with a label, for series of few points."""


@dataclass(frozen=True)
class Chart:
    """Lines and ticks of one picture; `told` says it in words."""

    title: str
    told: str
    x_label: str
    y_label: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def report(command: ReportCommand) -> dict[str, Any]:
    """Writes the page; returns where it lies and how large it is.

    Raises:
        InputError: a folder is no run, or its files are damaged.
    """
    runs = [read_run(folder) for folder in command.runs]
    single = command.runs[0] / "report.html" if len(command.runs) == 1 else Path("report.html")
    path = command.output or single
    template = resources.files("disp_llm") / "report.html"
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        template.read_text()
    )
    text = page.render(
        runs=runs,
        learning=learning_chart(runs),
        quality=quality_chart(runs),
        with_error=with_error,
        size=(WIDTH, HEIGHT),
        left=LEFT,
        bottom=BOTTOM,
    )
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return {"file": str(path), "bytes": path.stat().st_size, "runs": len(runs)}


def read_run(folder: Path) -> dict[str, Any]:
    """What the page shows of one run.

    Raises:
        InputError: the folder is no run, or a file is damaged.
    """
    run = Run(folder)
    if not run.config_file.exists():
        raise InputError(
            f"{folder} is not a run folder",
            flag="RUN",
            mend="name an --output-dir of `prune` or `recover`",
        )
    result = run.result()
    try:
        config = tomllib.loads(run.config_file.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(
            f"damaged ({error})", flag=str(run.config_file), mend="report another run"
        ) from error
    trained = "folder" in config  # a run of `recover`
    return {
        "name": folder.resolve().name,
        "model": config["folder" if trained else "model"],
        "kind": "recover" if trained else "prune",
        "status": result.get("status", "not begun"),
        "result": result,
        "sizes": [size_of(run, entry) for entry in result.get("models", [])],
        "metrics": _metrics(run.metrics_file),
        "config": list(_flat(config)),
        "bench": _bench(folder / "bench.json"),
    }


def _bench(path: Path) -> dict[str, Any] | None:
    """What `disp-llm bench --json` printed there, if anything."""
    mend = "write it again by `disp-llm bench … --json`, or delete it"
    found = read_json(path, mend) if path.exists() else None
    if found is not None and "comparisons" not in found:
        raise InputError("holds no comparison", flag=str(path), mend=mend)
    return found


def size_of(run: Run, entry: dict[str, Any]) -> dict[str, Any]:
    """Figures of one size, and pictures of its masks."""
    first = run.result()["models"][0]["size"]
    path = run.masks_file(entry["size"], first)
    try:
        with safe_open(path, framework="np") as file:
            kept = {
                name: file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118
                if name.startswith("layers.")
            }
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"cannot be read ({error})", flag=str(path), mend="export the size again"
        ) from error
    blocks = 1 + max(int(name.split(".")[1]) for name in kept)
    widths = {
        site: [len(kept[f"layers.{i}.{site}"]) for i in range(blocks)]
        for site in dict.fromkeys(name.split(".")[2] for name in sorted(kept))
    }
    full = entry["widths_full"]
    return {
        "figures": entry,
        "blocks": blocks,
        "full": full,
        "widths": {site: widths[site] for site in full if site in widths},
        "stream": {
            site: _bitmap([kept[f"layers.{i}.{site}"] for i in range(blocks)], full[site])
            for site in STREAM_SITES
        },
    }


def _bitmap(rows: list[np.ndarray], width: int) -> str:
    """A row a block, a column a dimension of the residual stream; dropped ones are transparent."""
    from matplotlib.image import imsave

    pixels = np.zeros((len(rows), width, 4), dtype=np.uint8)
    pixels[..., :3] = ACCENT
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


def _flat(table: dict[str, Any], path: str = ""):
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def learning_chart(runs: list[dict[str, Any]]) -> Chart | None:
    """The smoothed loss of every run against tokens."""
    series = {}
    for run in runs:
        mean, points = None, []
        for step in run["metrics"]:
            mean = step["loss"] if mean is None else SMOOTH * mean + (1 - SMOOTH) * step["loss"]
            points.append((step["tokens"], mean))
        if len(points) > 1:
            series[run["name"]] = points
    told = "; ".join(f"{name}: from {p[0][1]:.2f} to {p[-1][1]:.2f}" for name, p in series.items())
    return _chart(
        "Loss while masks or weights are learned", told, "tokens", "loss, smoothed", series
    )


def quality_chart(runs: list[dict[str, Any]]) -> Chart | None:
    """Perplexity against keep: the sizes of every run, and its curve where one was measured."""
    series = {}
    for run in runs:
        result = run["result"]
        points = {m["keep"]: m["perplexity"] for m in result.get("models", [])}
        points |= {p["keep"]: p["perplexity"] for p in result.get("curve", [])}
        if points and "dense" in result:
            points[1.0] = result["dense"]["perplexity"]
        if len(points) > 1:
            series[run["name"]] = sorted(points.items())
    told = "; ".join(
        f"{name}: " + ", ".join(f"{y:.1f} at keep {x:.2f}" for x, y in points)
        for name, points in series.items()
    )
    return _chart(
        "Quality against size",
        told,
        "keep",
        "perplexity, logarithmic",
        series,
        log=True,
        marks=True,
    )


def _chart(
    title: str,
    told: str,
    x_label: str,
    y_label: str,
    series: dict[str, list[tuple[float, float]]],
    log: bool = False,
    marks: bool = False,
) -> Chart | None:
    """Puts series into chart units; None where there is nothing to draw."""
    if not series:
        return None
    flat = [point for points in series.values() for point in points]
    scale = math.log if log else float
    x_low, x_high = min(x for x, _ in flat), max(x for x, _ in flat)
    y_low, y_high = scale(min(y for _, y in flat)), scale(max(y for _, y in flat))
    pad = 0.08 * (y_high - y_low or 1)
    y_low, y_high = y_low - pad, y_high + pad

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low or 1)
        up = (scale(y) - y_low) / (y_high - y_low)
        return (
            round(LEFT + across * (WIDTH - LEFT - 16), 1),
            round((1 - up) * (HEIGHT - BOTTOM - 8) + 8, 1),
        )

    lines = [
        Line(
            name,
            " ".join("{},{}".format(*place(x, y)) for x, y in points),
            [(*place(x, y), f"{y:.1f}") for x, y in points] if marks else [],
        )
        for name, points in series.items()
    ]
    bottom, top = (math.exp(y_low), math.exp(y_high)) if log else (y_low, y_high)
    x_ticks = [(place(x, flat[0][1])[0], _short(x)) for x in _ticks(x_low, x_high)]
    y_ticks = [(place(x_low, y)[1], _short(y)) for y in _ticks(bottom, top)]
    return Chart(title, told, x_label, y_label, lines, x_ticks, y_ticks)


def _short(number: float) -> str:
    """`0.6`, `45`, `20 k`."""
    return f"{number / 1e3:g} k" if number >= 1e4 else f"{number:g}"


def _ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers between two."""
    if high <= low:
        return [low]
    raw = (high - low) / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]
