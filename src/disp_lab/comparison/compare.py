"""Compares methods on one model, text, budget, exporter and evaluation: a row per method and size.

    OUTPUT/  compare.json  compare.md  compare.png  METHOD/ (a run folder each, or one per size)
             frontier.png

Each row is written once it is made, and not made again; one that fails says why.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from disp_lab.comparison.baseline_context import BaselineContext
from disp_lab.comparison.paired_statistics import paired
from disp_lab.comparison.rows import Comparison, row_makers
from disp_lab.comparison.table_rows import RowKey, missing, rows_asked
from disp_lab.names import ORIGINAL
from disp_lab.reporting.plots import draw_comparison, draw_frontier
from disp_lab.reporting.tables import markdown
from disp_lab.results import ComparisonRow, comparison_figures
from disp_lab.settings import CompareConfig
from disp_lab.variants import compared_methods
from disp_llm.commands.api import EXAMPLES, TEXTS, called
from disp_llm.commands.session import located, require_same_files
from disp_llm.config.errors import InputError
from disp_llm.config.recipes import flat, resolved
from disp_llm.config.texts import load_suite
from disp_llm.data.in_memory import read_input
from disp_llm.evaluation.measuring import scoreboard_of
from disp_llm.models.loading import load_config
from disp_llm.models.windows import within_positions
from disp_llm.runs.files import atomic, read_checked_json, write_checked_json
from disp_llm.runs.folder import require_same_source
from disp_llm.runs.lock import locked
from disp_llm.runs.ownership import require_ours
from disp_llm.runs.provenance import hardware, provenance, versions
from disp_llm.runs.results import ROWS_AGAIN, as_json
from disp_llm.runs.settings import FREE_TO_CHANGE

FRONTIER = "frontier.png"


def compare(asked: CompareConfig | str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Makes the requested rows that are missing; returns what `compare.json` then holds.

    Args:
        asked: the model to compare methods on, or all settings at once.
        options: settings by the names of their flags, with texts and examples given as files; also
            `progress`, `stop_requested` and `command`, as `prune` takes them.
    """
    _require_files(options)
    call = called(CompareConfig, asked, options)
    call.inputs.require_learnable()
    config = located(call.config)
    _started(config)  # fails before anything is touched
    with locked(config.output_dir, "compare"):
        result = _started(config)
        described = load_config(config.model)
        config = within_positions(config, described)
        original = comparison_figures(result).original
        board = scoreboard_of(config.suite, original.scores if original else None)
        with call.watching() as progress:
            context = BaselineContext(config, board)
            _add_rows(Comparison(config, context, replace(call, progress=progress)), result)
        if any(row.get("error") is None for row in result["rows"]):
            draw_comparison(result, config.output_dir / "compare.png")
        if config.frontier:
            draw_frontier(result, config.output_dir / FRONTIER)
            _write(config.output_dir, result, FRONTIER)
    return result


def _require_files(options: dict[str, Any]) -> None:
    """Refuses text and examples held in memory: the run of every row reads them again."""
    for field in (*TEXTS, *EXAMPLES):
        what = options.get(field) or ()
        parts = (what,) if isinstance(what, str | Path) else what
        files = isinstance(parts, list | tuple) and all(isinstance(p, str | Path) for p in parts)
        if files and parts and field in TEXTS:
            files = isinstance(read_input(what, field), tuple)
        if not files:
            hint = "write it to a file, and name that"
            raise InputError("lies in memory", field=field, hint=hint)


def _add_rows(comparison: Comparison, result: dict[str, Any]) -> None:
    """Makes the missing rows, and writes each down as it comes."""
    config, context = comparison.config, comparison.context
    makers = row_makers(comparison)
    made_by = partial(provenance, config.machine.seed, comparison.call.command)
    for name, make_rows in makers.items():
        wanted = missing(config, name, [row for row in result["rows"] if row["method"] == name])
        if not wanted:
            continue
        if "source" in result and not config.anyway:
            require_same_source(result["source"], context.sources, config.output_dir)
        if "original" not in result:
            measured = context.original(comparison.progress("original"))
            original = as_json(measured) | {"provenance": made_by()}
            result |= {"original": original, "source": context.sources, "inputs": context.files}
            _write(config.output_dir, result)
        comparison = replace(comparison, original=comparison_figures(result).original)
        for row in make_rows(comparison, name, wanted):
            _put(replace(row, provenance=made_by()), result, config)
            result |= {"hardware": hardware(), "versions": versions()}
            _write(config.output_dir, result)


def _put(row: ComparisonRow, result: dict[str, Any], config: CompareConfig) -> None:
    """Puts a row in its place, instead of an older one with its key, and pairs all rows anew."""
    made = {"error": None} | as_json(row) | ({"speedup": row.speedup} if row.speedup else {})
    mine, order = (row.method, RowKey.of(made)), [ORIGINAL, *compared_methods()]

    def rank(row: dict[str, Any]) -> tuple[int, int]:
        method, keys = row["method"], rows_asked(config, row["method"])
        return (
            order.index(method) if method in order else len(order),  # of a missing package
            keys.index(RowKey.of(row)) if RowKey.of(row) in keys else len(keys),
        )

    rows = [old for old in result["rows"] if (old["method"], RowKey.of(old)) != mine]
    result["rows"] = paired(sorted([*rows, made], key=rank))


def _write(folder: Path, result: dict[str, Any], picture: str = "") -> None:
    write_checked_json(folder / "compare.json", result)
    with atomic(folder / "compare.md") as temporary:
        temporary.write_text(markdown(result, picture), encoding="utf-8")


def _asked(config: CompareConfig) -> dict[str, Any]:
    """Returns the settings that identify a comparison."""
    asked: dict[str, Any] = {
        "model": config.model,
        "keep": list(config.keep),
        "steps": config.steps,
        "length": config.length,
        "batch": config.batch,
        "align": config.align,
    }
    for table in ("text", "evaluation", "scores", "machine"):
        asked[table] = resolved(getattr(config, table))
    if config.fit:
        asked["target"] = list(config.fit)
    if config.suite:
        asked["suite"] = {"file": config.suite} | resolved(load_suite(config.suite))
    return asked


def _started(config: CompareConfig) -> dict[str, Any]:
    """Returns what an earlier attempt at the same comparison left; refuses another's folder."""
    require_ours(config.output_dir, "compare")
    path, asked = config.output_dir / "compare.json", _asked(config)
    if not path.exists():
        return {"asked": asked, "rows": []}
    result = read_checked_json(path, ROWS_AGAIN, config.anyway)
    figures = comparison_figures(result, str(path))
    known = result["asked"]
    if "target" in known and "target" not in asked:  # its method is not asked for this time
        asked["target"] = known["target"]
    other = _difference({"target": asked.get("target")} | known, asked)
    if other:
        raise InputError(
            f"{path.parent} compares something else ({other})",
            field="output_dir",
            hint="name another folder",
        )
    if not config.anyway:
        require_same_files(config, figures.inputs, path.parent)
    return result | {"asked": known | asked}


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Returns the first setting in which two tables differ, as it was before; empty if equal."""
    had, has = dict(flat(before)), dict(flat(now))
    changed = (place for place in has | had if had.get(place) != has.get(place))
    fixed = (place for place in changed if place.split(".")[-1] not in FREE_TO_CHANGE)
    return next((f"{place}: {had.get(place)}" for place in fixed), "")
