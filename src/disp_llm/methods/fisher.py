"""One-shot Fisher scores per block parameter (this project; docs/how-it-works.md).

`log(F_i / c_i)` with `F_i` the mean over calibration sequences of the squared gradient of the loss
with respect to the mask entry, and `c_i` the block parameters that the entry costs.
"""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from disp_llm import scores
from disp_llm.config import InputError
from disp_llm.files import write_tensors
from disp_llm.learn import Task, checkpointed_blocks
from disp_llm.masks import Choice
from disp_llm.methods.context import Context, calibration_windows

ROUNDS = 8
"""Rounds of one-shot scores; the start of learning takes one (docs/experiment-log.md)."""


def fisher(task: Task, context: Context) -> Choice:
    """The scores as they are."""
    return Choice(fisher_scores(task, context, ROUNDS))


def fisher_scores(task: Task, context: Context, rounds: int) -> Tensor:
    """Scores (N), in so many rounds unless --score-rounds says otherwise.

    They are read from the run folder if an earlier attempt computed them. Processes share the
    calibration sequences.
    """
    path = context.folder / "scores.safetensors"
    if path.exists():
        importance = _read(path)
    else:
        config, accelerator = context.scores, context.accelerator
        windows = calibration_windows(task, config)
        device = next(task.model.parameters()).device
        with checkpointed_blocks(task.model, task.family, context.learn.gradient_checkpointing):
            importance = scores.fisher(
                task.model,
                task.family,
                task.budget,
                windows.to(device),
                min(task.keeps),
                min(config.score_rounds or rounds, config.calibration_sequences),
                (accelerator.process_index, accelerator.num_processes),
                lambda tensor: accelerator.reduce(tensor, reduction="sum"),
                context.on_sequence,
            )
        if accelerator.is_main_process:
            write_tensors(path, {"fisher": importance.cpu()})
    device = next(task.model.parameters()).device
    return scores.per_parameter(importance.to(device), task.budget)


def _read(path: Path) -> Tensor:
    try:
        return load_file(path)["fisher"]
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError("is damaged", flag=str(path), mend="delete it to score again") from error
