"""A selection -> models of every size: masks, a folder each, and the proof of what lies in it.

What is exported is loaded again and measured; its logits are held against the masked model's and
its parameters are counted on the model itself.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch

from disp_llm.commands.measuring import Measuring
from disp_llm.config.names import HEADS
from disp_llm.config.parts import BudgetConfig
from disp_llm.evaluation.agreement import logit_errors, warn_of_error
from disp_llm.evaluation.latency import TOLERANCE, corrected, measured_share
from disp_llm.evaluation.timing import Workload
from disp_llm.export.card import write_card
from disp_llm.export.cutting import compact_model
from disp_llm.export.folders import added_biases, export_folder, weight_bytes
from disp_llm.export.folding import fold_into_weights
from disp_llm.masks.budget import project
from disp_llm.masks.masking import masked
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks, Selection
from disp_llm.models.loading import load_model
from disp_llm.models.windows import fitting
from disp_llm.runs.results import DenseResult, SizeResult, as_json, from_json
from disp_llm.training.problem import PruningProblem

logger = logging.getLogger(__name__)

CHECK_TOKENS = 256
"""Length of the window on which the exported logits are held against the masked model's."""


def timed_workload(settings: BudgetConfig) -> Workload:
    """What a latency budget times."""
    return Workload(settings.workload, settings.workload_length, 1)


def share_of_heads(masks: Masks) -> float:
    """KV heads that are kept, and with them the KV cache, as a share of the dense model's."""
    names, parts = masks.layout.names, masks.layout.split(masks.kept)
    heads = [part for name, part in zip(names, parts, strict=True) if name.endswith(HEADS)]
    return float(torch.cat(heads).double().mean()) if heads else 1.0


def masks_of(problem: PruningProblem, selection: Selection, share: float) -> Masks:
    """The masks of a size: the projection of the importance onto its budget."""
    kept = project(selection.importance, problem.budget, share, problem.align).kept
    return Masks(problem.budget.layout, kept, selection)


@dataclass(frozen=True)
class SizeWriter:
    """Writes the models of one selection into the folder of its run."""

    problem: PruningProblem
    measuring: Measuring
    first_size: str
    """Name of the run's first size, whose files have no suffix."""

    def write(self, selection: Selection, shares: tuple[float, ...]) -> list[SizeResult]:
        """Exports and measures every size that the run does not have yet; all that it then has."""
        run, settings = self.problem.job.run, self.problem.job.config.budget
        stored = run.result().get("models", [])
        found = {entry["size"]: entry for entry in stored}
        for share in shares:
            size = settings.size_name(share)
            folder = run.model_folder(size, self.first_size)
            if found.get(size, {}).get("align") == self.problem.align and folder.is_dir():
                continue
            if settings.budget == "latency":
                masks, timing = self._masks_in_time(selection, share)
            else:
                masks, timing = masks_of(self.problem, selection, share), {}
            found[size] = as_json(self._write_one(masks, share, timing))
            run.update(models=list(found.values()))
        file = str(run.result_file)
        return [from_json(SizeResult, entry, file) for entry in found.values()]

    def measure_curve(self, selection: Selection, shares: tuple[float, ...]) -> None:
        """Perplexity of the masked model at every size, added to `curve` in `result.json`."""
        problem, run = self.problem, self.problem.job.run
        points = run.result().get("curve", [])
        with masked(problem.dense) as masking:
            for share in shares[len(points) :]:
                masks = masks_of(self.problem, selection, share)
                masking.set(masks.kept.float().to(problem.dense.device))
                with fold_into_weights(problem.dense, masks):
                    found = self.measuring.perplexity(problem.dense, f"curve at keep {share:g}")
                keep = float(problem.budget.keep(masks.counts))
                points.append({"keep_asked": share, "keep": keep} | as_json(found))
                run.update(curve=points)

    def _masks_in_time(self, selection: Selection, target: float) -> tuple[Masks, dict[str, Any]]:
        """Masks whose compact model, measured, takes the asked share of the dense one's time."""
        job, dense = self.problem.job, self.problem.dense
        workload, stage = timed_workload(job.config.budget), f"latency {target:g}: measuring"

        def measure(share: float) -> float:
            job.progress(stage, 0, 1, {})
            compact = compact_model(dense, masks_of(self.problem, selection, share))
            return measured_share(dense.model, compact, workload)

        share, attempts = corrected(target, measure)
        job.progress(stage, 1, 1, {})
        measured = next(a["measured"] for a in attempts if a["share"] == share)
        if abs(measured / target - 1) > TOLERANCE:
            logger.warning(
                "asked for %.1f %% of the time, the nearest of %d tries takes %.1f %%",
                100 * target, len(attempts), 100 * measured,
            )  # fmt: skip
        figures = {"work": workload.name, "measured_share": measured, "attempts": attempts}
        return masks_of(self.problem, selection, share), figures

    def _write_one(self, masks: Masks, share: float, timing: dict[str, Any]) -> SizeResult:
        """One size: masks file, folder, and the figures of what lies in the folder."""
        job, dense, measuring = self.problem.job, self.problem.dense, self.measuring
        settings = job.config.budget
        size = settings.size_name(share)
        name = f"keep {share:g}" if settings.budget == "params" else f"{settings.budget} {share:g}"
        masks.save(job.run.masks_file(size, self.first_size))
        folder = job.run.model_folder(size, self.first_size)
        with fold_into_weights(dense, masks), masked(dense) as masking:
            masking.set(masks.kept.float().to(dense.device))
            of_masked = measuring.perplexity(dense, f"{name}: masked perplexity")
            job.progress(f"{name}: export", 0, 1, {})
            shard = job.config.export.max_shard_size
            export_folder(dense, measuring.tokenizer, masks, folder, shard)
            job.progress(f"{name}: export", 1, 1, {})
            model = load_model(str(folder), dense.device, dense.dtype)
            tokens = measuring.stream[: fitting(dense.model, CHECK_TOKENS)]
            errors = logit_errors(dense.model, model, tokens)
        warn_of_error(errors, folder)
        compact = PrunableModel(model, dense.family)
        self._require_counted(compact, masks)
        measured = measuring.perplexity(compact, f"{name}: compact perplexity")
        original = from_json(DenseResult, job.run.result()["dense"], str(job.run.result_file))
        layout = masks.layout
        result = SizeResult(
            size=size,
            budget=settings.budget,
            share_asked=share,
            keep=compact.block_parameters / original.block_parameters,
            keep_total=compact.parameters / original.parameters,
            measured=measured,
            perplexity_masked=of_masked.perplexity,
            logit_errors=errors,
            parameters=compact.parameters,
            block_parameters=compact.block_parameters,
            bytes=weight_bytes(folder),
            share_of_budget=float(self.problem.budget.share(masks.counts)),
            align=self.problem.align,
            kv_cache=share_of_heads(masks),
            scaled=masks.compensation.scales is not None,
            biased=masks.compensation.mean_inputs is not None,
            widths_full=dict(zip(layout.sites, layout.blocks[0].lengths, strict=True)),
            sample=measuring.sample(model),
            folder=str(folder),
            latency=timing,
        )
        write_card(folder, result, job.run.result())
        return result

    def _require_counted(self, compact: PrunableModel, masks: Masks) -> None:
        """Holds the predicted number of parameters against the counted one."""
        dense = self.problem.dense
        predicted = dense.parameters - self.problem.budget.removed_parameters(masks.counts)
        predicted += added_biases(dense, masks)
        assert predicted == compact.parameters, (predicted, compact.parameters)
