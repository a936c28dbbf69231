"""Masks -> the folder of a compact model: run and measured, or only written.

What is measured is the folder, loaded again: its logits are held against the masked model's.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from disp_llm.commands.measuring import Measuring
from disp_llm.config.parts import MachineConfig
from disp_llm.data.windows import opening
from disp_llm.evaluation.agreement import logit_errors, warn_of_error
from disp_llm.evaluation.timing import speed_against
from disp_llm.exporter.cutting import fold_into_weights
from disp_llm.exporter.folders import stream_folder
from disp_llm.masks.masking import masked
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks
from disp_llm.models.devices import dtype_name
from disp_llm.models.loading import load_model
from disp_llm.models.windows import fitting
from disp_llm.training.adapters import Adapters, adapted
from disp_llm.training.problem import PruningProblem

if TYPE_CHECKING:
    from disp_llm.models.sharding import Sharding

CHECK_TOKENS = 256
"""Length of the window on which the exported logits are held against the masked model's."""


@dataclass(frozen=True)
class Exporter:
    """Writes models tensor by tensor, and measures what lies in the folder."""

    problem: PruningProblem
    tokenizer: Any
    measuring: Measuring | None = None
    """None = nothing is run."""
    sharding: "Sharding | None" = None
    """What holds models that do not all lie here; None = they do."""

    def write(self, masks: Masks, name: str, folder: Path) -> tuple[PrunableModel, dict[str, Any]]:
        """Writes the folder; returns its model, empty, and the figures of a `SizeResult` that were
        measured.

        Args:
            name: what progress calls the model.
        """
        original, measuring = self.problem.dense, self.measuring
        if measuring is None:
            return self._written(masks, name, folder), {}
        with as_masked(original, masks):
            of_masked = measuring.perplexity(original, f"{name}: masked perplexity")
        written = self._written(masks, name, folder)
        model = self._load(folder)
        start = opening(measuring.stream, CHECK_TOKENS)[:CHECK_TOKENS]
        with as_masked(original, masks):
            tokens = start[: fitting(original.model, CHECK_TOKENS)]
            errors = logit_errors(original.model, model, tokens)
        warn_of_error(errors, folder)
        figures = self._measured(model, name, measuring)
        if self.sharding is not None:
            self.sharding.drop(model)
        masked_run = {"perplexity_masked": of_masked.perplexity, "logit_errors": errors}
        return written, figures | masked_run

    def _written(self, masks: Masks, name: str, folder: Path) -> PrunableModel:
        """Writes the folder and returns its model, empty. What does not all lie in memory is read
        from the original's files."""
        original, count = self.problem.dense, self.problem.job.count(f"{name}: export")
        read = original.model.state_dict().__getitem__
        if not original.is_whole:
            machine = replace(self._machine, device="cpu")
            from disp_llm.models.checkpoint import load_unread

            loaded, checkpoint = load_unread(self.problem.job.config.model, machine)
            original = PrunableModel.of(loaded, original.sites)
            read = checkpoint.read if checkpoint else original.model.state_dict().__getitem__
        return stream_folder(original, masks, read, self.tokenizer, folder, count)

    def _load(self, folder: Path) -> PreTrainedModel:
        original = self.problem.dense
        if self.sharding is None:
            return load_model(str(folder), original.device, original.dtype)
        return self.sharding.load(str(folder), self._machine).model

    @property
    def _machine(self) -> MachineConfig:
        """Where both models run, and in which data type."""
        original, machine = self.problem.dense, self.problem.job.config.machine
        dtype: Any = dtype_name(original.dtype)
        return replace(machine, device=str(original.device), dtype=dtype)

    def _measured(self, model: PreTrainedModel, name: str, measuring: Measuring) -> dict[str, Any]:
        """What a compact model is measured on. One that is sharded is not timed."""
        job, original = self.problem.job, self.problem.dense
        compact = PrunableModel(model, original.family)
        rounds = job.config.rounds if self.sharding is None else 0
        reference = job.run.original
        assert reference is not None, "a size is measured against it"

        def on_round(phase: str, done: int) -> None:
            job.progress(f"{name}: timing {phase}", done, rounds, {})

        return {
            "measured": measuring.perplexity(compact, f"{name}: compact perplexity"),
            "speed": speed_against(original.model, model, rounds, on_round),
            "scores": measuring.scores(compact, name, reference.scores),
            "sample": measuring.sample(model),
        }


@contextlib.contextmanager
def as_masked(original: PrunableModel, masks: Masks) -> Iterator[None]:
    """While the context lasts, a model runs as the compact one of some masks will: its weights
    changed or, where they do not lie here, with scales and adapters beside them, as it ran when
    these were learned."""
    device, compensation = original.device, masks.compensation
    flat = masks.kept.float()
    with contextlib.ExitStack() as stack:
        if original.is_whole:
            stack.enter_context(fold_into_weights(original, masks))
        else:
            assert compensation.mean_inputs is None, "a method has read weights"
            flat = flat if compensation.scales is None else flat * compensation.scales.cpu()
            if compensation.adapters:
                adapters = Adapters(compensation.adapters).to(device)
                stack.enter_context(adapted(original, adapters))
        stack.enter_context(masked(original)).set(flat.to(device))
        yield
