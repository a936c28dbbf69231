"""Methods side by side: same model, text, budget, exporter and evaluation, a row a method and size.

    OUTPUT/  compare.json  compare.md  compare.png  METHOD/ (a run folder each)

A row that is there is not made again; a method that fails leaves rows that say why.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from disp_llm.config import CompareCommand, InputError, MethodName, PruneConfig
from disp_llm.evaluate import with_error
from disp_llm.files import atomic, write_json
from disp_llm.methods import METHODS
from disp_llm.prune import prune
from disp_llm.runs import Report, hardware, require_available, silent, versions


def compare(command: CompareCommand, report: Report = silent) -> dict[str, Any]:
    """Prunes by every method that is asked for and has no rows yet; returns what `compare.json`
    then holds.

    Raises:
        InputError: the output folder belongs to another comparison.
        Interrupted: a signal arrived; the same command goes on.
    """
    path = command.output_dir / "compare.json"
    methods = [name for name in METHODS if {"all", name} & set(command.methods)]
    asked = {"model": command.model, "keep": list(command.keep), "steps": command.steps}
    result = _before(path, asked)
    for method in methods:
        if any(row["method"] == method and not row["error"] for row in result["rows"]):
            continue
        rows = rows_of(command, method, report)
        result["rows"] = [row for row in result["rows"] if row["method"] != method] + rows
        result |= {"hardware": hardware(), "versions": versions()}
        result |= _dense(command.output_dir / method) or {}
        write_json(path, result)
        with atomic(command.output_dir / "compare.md") as temporary:
            temporary.write_text(markdown(result))
    return result


def _before(path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    if not path.exists():
        return {"asked": asked, "rows": []}
    result = json.loads(path.read_text())
    if result["asked"] != asked:
        raise InputError(
            f"{path.parent} compares something else ({result['asked']})",
            flag="--output-dir",
            mend="name another folder",
        )
    return result


def rows_of(command: CompareCommand, method: MethodName, report: Report) -> list[dict[str, Any]]:
    """One row a size; where the method fails, rows without figures and with the reason."""
    folder = command.output_dir / method
    config = PruneConfig(
        command.model,
        keep=command.keep,
        output_dir=folder,
        method=method,
        resume=(folder / "config.toml").exists(),
        text=command.text,
        evaluation=command.evaluation,
        machine=command.machine,
    )
    config = replace(config, learn=replace(config.learn, steps=command.steps))

    def of_method(stage: str, done: int, total: int, figures: dict[str, Any]) -> None:
        report(f"{method}: {stage}", done, total, figures)

    empty = {"perplexity": None, "perplexity_stderr": None, "keep": None, "block_parameters": None}
    try:
        require_available(config)
        result = prune(config, of_method)
    except InputError as error:
        why = str(error)
        return [
            {"method": method, "keep_asked": keep, **empty, "seconds": None, "tokens_seen": None}
            | {"error": why}
            for keep in command.keep
        ]
    keys = ("keep_asked", *empty)
    shared = {"seconds": result["seconds"], "tokens_seen": result["tokens_seen"], "error": None}
    return [
        {"method": method} | {key: model[key] for key in keys} | shared
        for model in result["models"]
    ]


def _dense(folder: Path) -> dict[str, Any] | None:
    """The dense model's figures, from a run that has measured them."""
    path = folder / "result.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return {key: found[key] for key in ("dense", "source") if key in found}


def markdown(result: dict[str, Any]) -> str:
    """A table with a row a method and a column a size."""
    keeps = result["asked"]["keep"]
    lines = ["| method | " + " | ".join(f"keep {keep:g}" for keep in keeps) + " | tokens | s |"]
    lines.append("|---|" + "---:|" * (len(keeps) + 2))
    for method in dict.fromkeys(row["method"] for row in result["rows"]):
        rows = {row["keep_asked"]: row for row in result["rows"] if row["method"] == method}
        cells = [
            rows[keep]["error"] or with_error(rows[keep]) if keep in rows else "" for keep in keeps
        ]
        first = next(iter(rows.values()))
        tokens = "" if first["tokens_seen"] is None else f"{first['tokens_seen']:,}"
        seconds = "" if first["seconds"] is None else f"{first['seconds']:.0f}"
        lines.append(f"| {method} | {' | '.join(cells)} | {tokens} | {seconds} |")
    if "dense" in result:
        lines += ["", f"Dense: {with_error(result['dense'])}, {result['source']['eval_text']}."]
    return "\n".join(lines) + "\n"
