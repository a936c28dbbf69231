"""A model on a suite, alone or against its original: `eval --suite`."""

import gc
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from disp_llm.commands.api import Inputs
from disp_llm.commands.measuring import facts_of
from disp_llm.config.errors import InputError, model_is
from disp_llm.config.evaluate import EvalConfig
from disp_llm.config.parts import MachineConfig
from disp_llm.config.schema import as_type
from disp_llm.config.suites import load_suite
from disp_llm.evaluation.suites import Scoreboard, against, require_suite
from disp_llm.export.original import original_of
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.loading import load_config
from disp_llm.runs.files import read_json
from disp_llm.runs.progress import ProgressCallback
from disp_llm.runs.scores import Scores

if TYPE_CHECKING:
    from disp_llm.models.sharding import Sharding

MEASURE_AGAIN = "write it by `disp-llm eval MODEL --suite … --json`, of the original"
"""What to do about a damaged file of scores."""


@dataclass(frozen=True)
class Known:
    """What results say of an original whose scores were read from a file."""

    model: str
    revision: str
    dtype: str


def score(config: EvalConfig, inputs: Inputs, progress: ProgressCallback) -> dict[str, Any]:
    """What a model scores on its suite: what `disp-llm eval --suite --json` prints.

    Everything that can be wrong with the suite and with the original is found before the model is
    measured; the two models are never in memory together.

    Raises:
        InputError: the suite, the model or the original is unusable, or the scores of the original
            are those of another suite.
    """
    board = Scoreboard.of(load_suite(config.suite), progress)
    original = _original(config)
    if original.endswith(".json") and not Path(original).is_file():
        raise InputError(f"there is no file {original}", field="dense", hint=MEASURE_AGAIN)
    stored = read_scores(Path(original)) if original.endswith(".json") else None
    if stored is not None:
        require_suite(board, stored[1], original)
    elif original:
        with model_is("dense"):
            load_config(original)
    facts, scores = measured_apart(board, inputs, config.model, config.machine)
    if original:
        with model_is("dense"):
            dense = stored or measured_apart(board, Inputs(), original, config.machine)
        scores = against(scores, dense[1], original)
        facts["original"] = {entry.name: dense[0][entry.name] for entry in fields(Known)}
    return facts | scores.as_json()


def read_scores(path: Path) -> tuple[dict[str, Any], Scores]:
    """What `eval --suite --json` has printed: facts about the model, and its scores.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    found = read_json(path, MEASURE_AGAIN)
    known: Known = as_type(found, Known, field=str(path), hint=MEASURE_AGAIN)
    scores: Scores = as_type(found, Scores, field=str(path), hint=MEASURE_AGAIN)
    return asdict(known), scores


def _original(config: EvalConfig) -> str:
    """Name, path or file of scores of the original; empty where none is asked for."""
    if config.dense != "auto":
        return config.dense
    folder = Path(config.model)
    found = original_of(folder) if folder.is_dir() else ""
    if not found:
        raise InputError(
            f"nothing says what {config.model} was made from", field="dense", hint="name it"
        )
    return found


def measured_apart(
    board: Scoreboard,
    inputs: "Inputs | Sharding",
    name: str,
    machine: MachineConfig,
    recorded: dict[str, str] | None = None,
) -> tuple[dict[str, Any], Scores]:
    """Facts about a model, and its scores; its memory is free afterwards.

    Args:
        inputs: what of it lies in memory, or what is to hold it.
        recorded: what a record says of where it came from, by which its revision is told.

    Raises:
        InputError: the model cannot be loaded, or not be measured on the suite.
    """
    measured = _loaded_and_measured(board, inputs, name, machine, recorded or {})
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return measured


def _loaded_and_measured(
    board: Scoreboard,
    inputs: "Inputs | Sharding",
    name: str,
    machine: MachineConfig,
    recorded: dict[str, str],
) -> tuple[dict[str, Any], Scores]:
    loaded = inputs.load(name, machine).as_recorded(recorded)
    target = PrunableModel.of(loaded)
    measured = facts_of(loaded, target), board.measure(target, loaded.tokenizer)
    if loaded.sharding is not None:
        loaded.sharding.drop(loaded.model)
    return measured
