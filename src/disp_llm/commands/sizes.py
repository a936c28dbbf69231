"""A selection -> models of every size: masks, a folder each, and the figures of what lies in it.

Parameters are counted on the model that was exported, and held against what the budget says.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from disp_llm.commands.exporting import Exporter
from disp_llm.config.errors import InputError
from disp_llm.config.parts import BudgetConfig
from disp_llm.config.targets import Target
from disp_llm.evaluation.timing import Workload
from disp_llm.exporter.card import write_card
from disp_llm.exporter.cutting import compact_model
from disp_llm.exporter.facts import size_of
from disp_llm.exporter.folders import weight_bytes
from disp_llm.masks.budget import project
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks, Selection
from disp_llm.masks.selection_file import add_masks, has_masks
from disp_llm.runs.files import atomic
from disp_llm.runs.provenance import provenance
from disp_llm.runs.results import SizeResult, Timing, as_json, from_json
from disp_llm.runs.sums import write_sums
from disp_llm.training.estimators import deterministic_mask
from disp_llm.training.problem import PruningProblem

logger = logging.getLogger(__name__)


def timed_workloads(settings: BudgetConfig) -> list[Workload]:
    """What a latency budget times."""
    length, batch = settings.workload_length, settings.workload_batch
    return [Workload(phase, length, batch) for phase in settings.workload]


def masks_of(problem: PruningProblem, selection: Selection, share: float) -> Masks:
    """The masks of a size: the projection of the importance onto its budget, and nothing inside of
    a branch that is pruned as a whole."""
    kept = project(selection.importance, problem.budget, share, problem.align).kept
    layout = problem.budget.layout
    return Masks(layout, layout.without_dropped(kept), selection)


@dataclass(frozen=True)
class SizeWriter:
    """Writes the models of one selection into the folder of its run."""

    problem: PruningProblem
    exporter: Exporter

    def write(self, selection: Selection, sizes: tuple[Target, ...]) -> None:
        """Exports every size that the run does not have yet, or has not measured yet if that is
        asked for."""
        job, settings = self.problem.job, self.problem.job.config.budget
        run = job.run
        found = {entry["size"]: entry for entry in run.result().get("models", [])}
        for size in sizes:
            name = settings.size_name(size)
            folder = run.size_folder(name)
            if name in found and run.has(run.selection_file) and run.has(folder):
                there = from_json(SizeResult, found[name], str(run.result_file))
                if there.measured or self.exporter.measuring is None:
                    continue
            self._require_free(name, folder)
            run.forget(folder)
            if settings.budget == "latency":
                masks, timing = self._masks_in_time(selection, size)
            else:
                share = self.problem.budget.share_of(size)
                masks, timing = masks_of(self.problem, selection, share), None
            written = self._write_one(masks, size, timing)
            # The card has no provenance: the same model has the same bytes whenever it is written.
            made_by = provenance(job.config.machine.seed, job.command)
            found[name] = as_json(replace(written, provenance=made_by))
            run.update(folder, models=list(found.values()))

    def _require_free(self, name: str, folder: Path) -> None:
        """Refuses to replace what this run has not written."""
        written = size_of(folder)  # by an attempt that was killed then
        if folder.exists() and written != name:
            raise InputError(
                f"{folder} exists and holds something else",
                field="keep",
                hint="move it away",
            )

    def _masks_in_time(self, selection: Selection, size: Target) -> tuple[Masks, Timing]:
        """Masks whose compact model, measured, takes the asked share of the dense one's time."""
        from disp_llm.evaluation.latency import TOLERANCE, corrected, measured_time

        job, dense = self.problem.job, self.problem.dense
        target = self.problem.budget.share_of(size)
        workloads, stage = timed_workloads(job.config.budget), f"latency {size.name}: measuring"
        seconds: dict[float, float] = {}

        def measure(share: float) -> float:
            job.progress(stage, 0, 1, {})
            compact = compact_model(dense, masks_of(self.problem, selection, share))
            found, seconds[share] = measured_time(dense.model, compact, workloads)
            return found

        share, attempts = corrected(target, measure)
        job.progress(stage, 1, 1, {})
        measured = next(a["measured"] for a in attempts if a["share"] == share)
        if abs(measured / target - 1) > TOLERANCE:
            logger.warning(
                "asked for %.1f %% of the time, the nearest of %d tries takes %.1f %%",
                100 * target, len(attempts), 100 * measured,
            )  # fmt: skip
        work = " and ".join(workload.name for workload in workloads)
        timing: Timing = {
            "work": work,
            "measured_share": measured,
            "measured_ms": 1e3 * seconds[share],
            "attempts": attempts,
        }
        return masks_of(self.problem, selection, share), timing

    def _write_one(self, masks: Masks, size: Target, timing: Timing | None) -> SizeResult:
        """One size: masks file, folder, and the figures of what lies in the folder."""
        job, budget, original = self.problem.job, self.problem.budget, self.problem.dense
        kind, size_name = job.config.budget.budget, job.config.budget.size_name(size)
        name = f"keep {size.name}" if kind == "params" else f"{kind} {size.name}"
        with atomic(job.run.size_folder(size_name)) as written:
            compact, figures = self.exporter.write(masks, name, written)
            predicted = original.parameters - budget.removed_parameters(masks.counts)
            if masks.compensation.mean_inputs is None:  # else layers may have gained a bias
                assert predicted == compact.parameters, (predicted, compact.parameters)
            figures |= {"bytes": weight_bytes(written), "latency": timing}
            result = self._result(compact, masks, size, **figures)
            write_card(written, result, job.run.result())
            write_sums(written)
            self._record_masks(masks, size_name)
        return result

    def _record_masks(self, masks: Masks, name: str) -> None:
        """Adds the masks of a size to the selection file, if it has them not yet."""
        run, path = self.problem.job.run, self.problem.job.run.selection_file
        if not (run.has(path) and has_masks(path, masks, name)):
            with run.replacing(path) as new:
                add_masks(path, masks, name, new)

    def _result(
        self, compact: PrunableModel, masks: Masks, size: Target, **measured: Any
    ) -> SizeResult:
        """The figures of a size: those that follow from the model and its masks, and those that
        were measured."""
        settings, original = self.problem.job.config.budget, self.problem.job.run.original
        name = settings.size_name(size)
        assert original is not None, "shares are of it"
        return SizeResult(
            size=name,
            budget=settings.budget,
            share_asked=self.problem.budget.share_of(size),
            asked=str(size) if size.unit else None,
            keep=compact.block_parameters / original.block_parameters,
            keep_total=compact.parameters / original.parameters,
            parameters=compact.parameters,
            block_parameters=compact.block_parameters,
            share_of_budget=float(self.problem.budget.share(masks.counts)),
            align=self.problem.align,
            kv_cache=masks.kv_cache,
            heads_pruned=masks.heads_pruned,
            dropped=masks.dropped,
            other_parameters=compact.other_parameters,
            usual_blocks=compact.usual_blocks,
            scaled=masks.compensation.scales is not None,
            biased=masks.compensation.mean_inputs is not None,
            adapter_rank=masks.compensation.adapter_rank,
            learned_weights=any(one.delta is not None for one in masks.compensation.adapters),
            widths_full={site: max(of) for site, of in masks.layout.widths.items()},
            folder=str(self.problem.job.run.size_folder(name)),
            **measured,
        )


def keep_by_penalty(problem: PruningProblem, selection: Selection) -> float:
    """The size that learning arrived at by itself, before the cut to the exact budget."""
    learn, budget = problem.learn, problem.budget
    logits = budget.layout.by_chunks(selection.importance, budget.chunk)
    likely_kept = deterministic_mask(logits, learn.estimator, learn.shift)
    kept = likely_kept | budget.never_pruned
    return float(budget.keep(budget.layout.counts(kept.long())))
