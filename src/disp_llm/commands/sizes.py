"""A selection -> models of every size: masks, a folder each, and the figures of its content.

The folder itself is loaded and measured. Its logits are compared with the masked model's, and its
parameters with what the budget says.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from disp_llm.commands.budgets import masks_in_time
from disp_llm.commands.engines import converted, formats_of, place_of, stopwatch_of
from disp_llm.config.errors import InputError
from disp_llm.config.parts import PlaceConfig
from disp_llm.config.targets import Target
from disp_llm.evaluation.agreement import logit_errors, warn_of_error
from disp_llm.evaluation.measuring import Measuring
from disp_llm.evaluation.timing import Stopwatch, speed_against
from disp_llm.exporter.card import write_card
from disp_llm.exporter.cutting import fold_into_weights
from disp_llm.exporter.facts import size_of
from disp_llm.exporter.folders import stream_folder, weight_bytes
from disp_llm.masks.masking import masked
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks, Selection
from disp_llm.masks.selection_file import add_masks, has_masks
from disp_llm.models.checkpoint import load_unread
from disp_llm.models.loading import Loaded, load_model
from disp_llm.models.windows import fitting
from disp_llm.runs.files import atomic
from disp_llm.runs.provenance import provenance
from disp_llm.runs.results import SizeResult, Timing
from disp_llm.runs.sums import write_sums
from disp_llm.training.adapters import Adapters, adapted
from disp_llm.training.estimators import deterministic_mask
from disp_llm.training.problem import PruningProblem

CHECK_TOKENS = 256
"""Length of the window on which exported logits are compared with the masked model's."""


@dataclass(frozen=True)
class SizeWriter:
    """Writes models into the folder of their run, tensor by tensor, and measures them."""

    problem: PruningProblem
    loaded: Loaded
    """Original, with the tokens that stay."""
    measuring: Measuring | None = None
    """What sizes are measured on; None = nothing is run."""
    whole: Loaded | None = None
    """Original with all of its tokens, which sizes are timed beside; None = all stay."""

    def write(self, selection: Selection, sizes: tuple[Target, ...]) -> None:
        """Exports every size that the run lacks or, with `measuring`, has not measured. Then writes
        each one in the format of `for_`."""
        job, settings = self.problem.job, self.problem.job.config.budget
        run = job.run
        figures = run.figures
        found = {one.size: one for one in figures.models} if figures else {}
        for size in sizes:
            name = settings.size_name(size)
            folder = run.size_folder(name)
            there = name in found and run.has(run.selection_file) and run.has(folder)
            if there and (found[name].measured or self.measuring is None):
                continue
            # An attempt that was killed may have left a folder of its own.
            if folder.exists() and size_of(folder) != name:
                raise InputError(
                    f"{folder} exists and holds something else", field="keep", hint="move it away"
                )
            run.forget(*filter(None, (folder, place_of(job, folder))))
            timing = None
            if settings.kind == "latency":
                masks, timing = masks_in_time(self.problem, selection, size, self._stopwatch)
            else:
                masks = self.problem.masks(selection, self.problem.budget.share_of(size))
            written = self._write_one(masks, size, timing)
            # The card has no provenance: the same model has the same bytes whenever it is written.
            made_by = provenance(job.config.machine.seed, job.command)
            found[name] = replace(written, provenance=made_by)
            run.update(folder, models=list(found.values()))
        for size in sizes:
            name = settings.size_name(size)
            if place := converted(job, run.size_folder(name)):
                found[name] = replace(found[name], converted=str(place))
                run.update(place, models=list(found.values()))

    def _write_one(self, masks: Masks, size: Target, timing: Timing | None) -> SizeResult:
        """Writes masks, folder and card of a size; returns the figures of the folder."""
        job, budget, original = self.problem.job, self.problem.budget, self.problem.dense
        kind, size_name = job.config.budget.kind, job.config.budget.size_name(size)
        name = f"keep {size.name}" if kind == "params" else f"{kind} {size.name}"
        with atomic(job.run.size_folder(size_name)) as written:
            compact = self._written(masks, name, written)
            figures = self._measured(masks, name, written) if self.measuring else {}
            predicted = original.parameters - budget.removed_parameters(masks.counts)
            if masks.compensation.mean_inputs is None:  # else layers may have gained a bias
                assert predicted == compact.parameters, (predicted, compact.parameters)
            figures |= {"bytes": weight_bytes(written), "latency": timing}
            figures["formats"] = formats_of(written)
            result = self._result(compact, masks, size, **figures)
            write_card(written, result, job.run.result())
            write_sums(written)
            self._record_masks(masks, size_name)
        return result

    def _written(self, masks: Masks, name: str, folder: Path) -> PrunableModel:
        """Writes the folder and returns its model, without weights. If not all of the original's
        weights lie in memory, reads them from its files."""
        original, count = self.problem.dense, self.problem.job.count(f"{name}: export")
        read = original.model.state_dict().__getitem__
        if not original.is_whole:
            machine = replace(self._machine, device="cpu")
            loaded, checkpoint = load_unread(self.problem.job.config.model, machine)
            original = PrunableModel.of(loaded, original.sites)
            read = checkpoint.read if checkpoint else original.model.state_dict().__getitem__
        return stream_folder(original, masks, read, self.loaded.tokenizer, folder, count)

    def _measured(self, masks: Masks, name: str, folder: Path) -> dict[str, Any]:
        """Returns the measured figures of a `SizeResult`. A sharded model is not timed."""
        job, original, measuring = self.problem.job, self.problem.dense, self.measuring
        reference, sharding = job.run.original, self.loaded.sharding
        assert measuring is not None
        assert reference is not None, "a size is measured against it"
        if sharding is None:
            model = load_model(str(folder), original.device, original.dtype)
        else:
            model = sharding.load(str(folder), self._machine).model
        compact = PrunableModel(model, original.family)
        tokens = measuring.opening(CHECK_TOKENS)[:CHECK_TOKENS]
        with as_masked(original, masks):
            of_masked = measuring.perplexity(original, f"{name}: masked perplexity")
            tokens = tokens[: fitting(original.model, CHECK_TOKENS)]
            errors = logit_errors(original, compact, tokens)
        warn_of_error(errors, name)
        rounds = job.config.rounds if sharding is None else 0
        figures = {
            "perplexity_masked": of_masked.perplexity,
            "logit_errors": errors,
            "measured": measuring.perplexity(compact, f"{name}: compact perplexity"),
            "speed": speed_against(
                self._beside.model, model, rounds, job.progress, f"{name}: ", self._stopwatch
            ),
            "timed_in": self._stopwatch.program,
            "scores": measuring.scores(compact, name, reference.scores),
            "sample": measuring.sample(model),
        }
        if sharding is not None:
            sharding.drop(model)
        return figures

    @property
    def _beside(self) -> Loaded:
        """Model that sizes are timed beside."""
        return self.whole or self.loaded

    @cached_property
    def _stopwatch(self) -> Stopwatch:
        """Stopwatch that times the models."""
        original = PrunableModel.of(self._beside, self.problem.dense.sites)
        tokenizers = self._beside.tokenizer, self.loaded.tokenizer
        return stopwatch_of(self.problem.job.config, original, *tokenizers)

    @property
    def _machine(self) -> PlaceConfig:
        """Where both models run, and in which data type."""
        return self.loaded.machine(self.problem.job.config.machine, self.problem.dense.device)

    def _record_masks(self, masks: Masks, name: str) -> None:
        """Adds the masks of a size to the selection file, unless it has them."""
        run, path = self.problem.job.run, self.problem.job.run.selection_file
        if not (run.has(path) and has_masks(path, masks, name)):
            with run.replacing(path) as new:
                add_masks(path, masks, name, new)

    def _result(
        self, compact: PrunableModel, masks: Masks, size: Target, **measured: Any
    ) -> SizeResult:
        """Returns the figures of a size: those that follow from the model and its masks, and the
        measured ones."""
        settings, original = self.problem.job.config.budget, self.problem.job.run.original
        name = settings.size_name(size)
        assert original is not None, "shares are of it"
        return SizeResult(
            size=name,
            budget=settings.kind,
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
            vocabulary=len(self.problem.vocabulary),
            usual_blocks=compact.usual_blocks,
            scaled=masks.compensation.scales is not None,
            biased=masks.compensation.mean_inputs is not None,
            adapter_rank=masks.compensation.adapter_rank,
            learned_weights=any(one.delta is not None for one in masks.compensation.adapters),
            widths_full={site: max(of) for site, of in masks.layout.widths.items()},
            folder=str(self.problem.job.run.size_folder(name)),
            **measured,
        )


@contextlib.contextmanager
def as_masked(original: PrunableModel, masks: Masks) -> Iterator[None]:
    """Makes a model run, while the context lasts, as the compact one of some masks will. Changes
    its weights or, if they do not all lie here, adds scales and adapters as when they were learned.
    """
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


def keep_by_penalty(problem: PruningProblem, selection: Selection) -> float:
    """Returns the keep that learning arrived at by itself, before the cut to the exact budget."""
    learn, budget = problem.learn, problem.budget
    logits = budget.layout.by_chunks(selection.importance, budget.chunk)
    likely_kept = deterministic_mask(logits, learn.estimator, learn.shift)
    kept = likely_kept | budget.never_pruned
    return float(budget.keep(budget.layout.counts(kept.long())))
