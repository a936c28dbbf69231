"""Whether the program that is to run the result can run it, before anything is learned."""

import tempfile
from pathlib import Path

import torch

from disp_llm.config.errors import InputError
from disp_llm.exporter.cutting import empty_compact_model
from disp_llm.exporter.folders import write_readers
from disp_llm.exporter.formats import writer_of
from disp_llm.masks.selection import Selection
from disp_llm.models.loading import Loaded
from disp_llm.training.problem import PruningProblem


def require_engine(problem: PruningProblem, loaded: Loaded) -> None:
    """Refuses a model that the program cannot run even when it is pruned as that asks for: the
    format is asked about a folder of the widths that masks of equal scores have."""
    demands = problem.job.config.demands
    if demands.format == "folder":
        return
    scores = Selection(torch.zeros(problem.budget.layout.entries))
    masks = problem.masks(scores, problem.keeps[0])
    with tempfile.TemporaryDirectory() as temporary:
        empty_compact_model(problem.dense, masks).save_pretrained(temporary, state_dict={})
        write_readers(loaded.tokenizer, problem.dense.processor, Path(temporary))
        try:
            writer_of(demands.format).check(Path(temporary))
        except InputError as error:
            hint = "name another program, such as vllm"
            raise InputError(error.what, field="for_", hint=hint) from error
