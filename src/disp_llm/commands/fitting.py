"""From what a user has, such as 100 MB, to a smaller model: how many tokens stay, in how many bits
weights are stored, and how much of the blocks is then kept.

What fewer tokens cost, and what rounding costs, is measured on the held-out end of the learning
text, before anything is learned; what a smaller share of the blocks costs is expected. That decides
the tokens, and the sizes that are learned, one for each number of bits. All these models are
written and measured on the same held-out end: the best of them is the answer.

V tokens of the whole vocabulary.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from disp_llm.commands.convert import convert
from disp_llm.commands.planning import default_align, problem_of, sites_of
from disp_llm.commands.vocabulary import chosen_tokens
from disp_llm.compact.modeling_disp_llm import widths_of
from disp_llm.config.errors import InputError
from disp_llm.config.names import Bits
from disp_llm.config.parts import BudgetConfig, MachineConfig, PerplexityConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.config.targets import BYTES, PARAMETERS, Target
from disp_llm.data.spelling import Spelling
from disp_llm.data.windows import Corpus, Stream
from disp_llm.evaluation.perplexity import perplexity
from disp_llm.exporter.folders import weight_bytes
from disp_llm.masks.budget import TooSmall, project
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.devices import dtype_name
from disp_llm.models.loading import Loaded, load
from disp_llm.models.rounding import GROUP
from disp_llm.models.trimming import require_rows, trimmed
from disp_llm.models.windows import fitting
from disp_llm.runs.files import atomic
from disp_llm.runs.job import Job
from disp_llm.runs.results import Choice, Fit, SizeResult
from disp_llm.training.rounding import rounded

if TYPE_CHECKING:
    from disp_llm.commands.prune import Opened

logger = logging.getLogger(__name__)

RUNGS = (0.85, 0.7, 0.55, 0.4, 0.3, 0.2, 0.1)
"""Shares of the vocabulary that are tried."""

HELD_OUT = 0.1
"""Share of the learning text, at its end, that decides."""

WINDOW, WINDOWS = 512, 16
"""Tokens of a window of it, and how many are read."""

HEADER = 256
"""Bytes that a file of weights takes to name a tensor, at most."""


def expected_loss(keep: float) -> float:
    """Log of how many times the original's perplexity the default comes to at a size: 1.33, 1.82
    and 2.76 times at 0.8, 0.65 and 0.5 (experiments/results/contest.md), three points of one small
    model. It only chooses between sizes that are then measured."""
    return 1.05 * (1 / keep - 1) ** 0.93


@dataclass(frozen=True)
class Bytes:
    """What a way to store weights takes, from what is counted in one model."""

    token: float
    """For each token that stays."""
    blocks: float
    """For all blocks; of a smaller share of their parameters that share."""
    rest: float

    def keep(self, limit: float, tokens: int) -> float:
        """The share of the blocks that there is room for, at most 1; 0 and less where there is
        none."""
        return min((limit - self.rest - tokens * self.token) / self.blocks, 1.0)


def stored(target: PrunableModel, bits: Bits, itemsize: int) -> Bytes:
    """What a model takes in so many bits.

    Args:
        itemsize: bytes of a number that is not quantised; 1 counts parameters.
    """
    rows, width = target.head_weight.shape
    tied = target.model.config.get_text_config().tie_word_embeddings
    ends = 1 if tied else 2
    weights, tensors = target.block_parameters, len(target.model.state_dict())
    outside = target.parameters - weights - ends * rows * width
    named = HEADER * tensors * (itemsize > 1)
    if bits == "as-is":
        return Bytes(itemsize * ends * width, itemsize * weights, itemsize * outside + named)
    outputs = sum(len(linear.weight) for linear in target.linears())
    row = ends * width + 2 * itemsize  # tied ends store their scales twice
    if bits == "int8":
        return Bytes(row, weights, itemsize * (outside + outputs) + 2 * named)
    return Bytes(row, weights * (0.5 + itemsize / GROUP), itemsize * outside + 3 * named)


def possible_bits(config: PruneConfig, target: PrunableModel, align: int) -> tuple[Bits, ...]:
    """The ways to store this model that are asked for."""
    if config.budget.kind != "bytes":
        return ("as-is",)
    whole = target.usual_blocks and not target.family.tower
    described = target.model.config.get_text_config()
    head = (
        getattr(described, "head_dim", None)
        or described.hidden_size // described.num_attention_heads
    )
    widths = [align, head, *(width for linear in target.linears() for width in widths_of(linear))]
    grouped = not any(width % GROUP for width in widths)
    can = {"as-is": True, "int8": whole, "int4": whole and grouped}
    return tuple(bits for bits in config.bits if can[bits])


@dataclass(frozen=True)
class Room:
    """What is asked for, of one model."""

    size: Target
    limit: float
    """Bytes or parameters."""
    dense: int
    """Of the original."""
    ways: dict[Bits, Bytes]

    @classmethod
    def of(cls, config: PruneConfig, target: PrunableModel, itemsize: int) -> "Room":
        """What the settings leave a model.

        Args:
            itemsize: bytes of one of its numbers.

        Raises:
            InputError: the original fits as it is.
        """
        size, counts = config.sizes[0], config.budget.kind == "total"
        itemsize = 1 if counts else itemsize
        dense = target.parameters * itemsize
        limit = size.value if size.unit else size.amount * dense
        if limit >= dense:
            raise InputError(
                f"the original fits in {size} as it is, with {dense:,} "
                f"{PARAMETERS if counts else BYTES}",
                field="fit",
                hint="ask for less, or take the original",
            )
        align = config.export.align or default_align(target)
        possible = possible_bits(config, target, align)
        return cls(size, limit, dense, {bits: stored(target, bits, itemsize) for bits in possible})

    def keep(self, bits: Bits, tokens: int) -> float:
        """The share of the blocks that there is room for, rounded down to four digits."""
        return math.floor(1e4 * self.ways[bits].keep(self.limit, tokens)) / 1e4

    def too_small(self, least: float, tokens: int) -> InputError:
        """What is said where nothing fits.

        Args:
            least: share of the blocks that the smallest model keeps.
            tokens: that it keeps.
        """
        smallest = min(
            way.rest + least * way.blocks + tokens * way.token for way in self.ways.values()
        )
        if self.size.unit:
            said = self.size.like(smallest, at_least=True)
        else:
            said = f"{smallest / self.dense:.2g}"
        return InputError(
            f"{self.size} is less than the smallest model, {said}",
            field="fit",
            hint="ask for more, or for more `sites`",
        )


def outlook(config: PruneConfig, target: PrunableModel, itemsize: int) -> list[dict[str, Any]]:
    """What each way to store a model leaves of its blocks, with all of its tokens, and how many
    times the original's perplexity that is expected to come to without what rounding costs."""
    room, rows = Room.of(config, target, itemsize), len(target.head_weight)
    keeps = {bits: room.keep(bits, rows) for bits in room.ways}
    return [
        {"bits": bits, "keep": keep, "expected": math.exp(expected_loss(keep))}
        for bits, keep in keeps.items()
        if keep > 0
    ]


def fitted(job: Job[PruneConfig], loaded: Loaded, corpus: Corpus) -> tuple[Job[PruneConfig], Fit]:
    """The job with a vocabulary and sizes of block parameters in place of what was asked for, and
    what led to them.

    Raises:
        InputError: the original fits as it is, or nothing that can be made of it does.
    """
    config = job.config
    found = job.run.figures
    fit = found.fit if found is not None and found.fit is not None else _fit(job, loaded, corpus)
    keeps = tuple(dict.fromkeys(choice.keep for choice in fit.choices))
    kept = replace(config.vocabulary, vocabulary=fit.tokens)
    config = replace(config, keep=keeps, budget=BudgetConfig(), vocabulary=kept)
    return replace(job, config=config), fit


def _fit(job: Job[PruneConfig], loaded: Loaded, corpus: Corpus) -> Fit:
    config, whole = job.config, len(loaded.tokenizer)
    target = PrunableModel.of(loaded, sites_of(config, loaded.family))
    room = Room.of(config, target, target.head_weight.element_size())
    least, held = least_keep(job, loaded), HeldOut.of(corpus, loaded)
    ladder = list(_ladder(job, loaded, corpus, held))
    found = dict[tuple[Bits, int], Choice]()
    for bits in room.ways:
        rounding = _lost_by_rounding(loaded, held, bits)
        for tokens, lost in ladder:
            keep = room.keep(bits, tokens)
            if keep >= least:
                expected = lost + rounding + expected_loss(keep)
                found[bits, tokens] = Choice(bits, keep, math.exp(expected))
    if not found:
        raise room.too_small(least, min(tokens for tokens, _ in ladder))
    _, tokens = min(found, key=lambda key: found[key].expected)
    choices = [found[bits, tokens] for bits in room.ways if (bits, tokens) in found]
    choices.sort(key=lambda choice: choice.expected)
    near = [one for one in choices if one.expected <= NEAR * choices[0].expected]
    return Fit(str(room.size), room.limit, 0 if tokens == whole else tokens, near)


NEAR = 1.5
"""Choices that are expected to lose so many times as much as the best are not made."""


def least_keep(job: Job[PruneConfig], loaded: Loaded) -> float:
    """The share of block parameters of the smallest model."""
    by_blocks = replace(job.config, budget=BudgetConfig(), keep=(1.0,))
    problem = problem_of(replace(job, config=by_blocks), loaded)
    try:
        project(torch.zeros(problem.budget.layout.entries), problem.budget, 0.0, problem.align)
    except TooSmall as error:
        return error.least
    return 0.0


@dataclass(frozen=True)
class HeldOut:
    """Windows of the end of the learning text, or the last of its examples."""

    stream: Stream
    context: int

    @classmethod
    def of(cls, corpus: Corpus, loaded: Loaded) -> "HeldOut":
        """Of every source as many windows as its weight says; of examples only where there is no
        text."""
        texts = [
            (stream, weight)
            for stream, weight in zip(corpus.streams, corpus.weights, strict=True)
            if isinstance(stream, Tensor)
        ]
        if not texts:
            examples: Any = corpus.streams[0]
            some = examples.examples[-max(int(HELD_OUT * len(examples.examples)), 1) :]
            return cls(replace(examples, examples=some), len(examples.longest.tokens))
        context = fitting(loaded.model, 2 * WINDOW) // 2  # fewer tokens make more pieces
        context = min(context, *(len(stream) for stream, _ in texts))
        total, windows = sum(weight for _, weight in texts), list[Tensor]()
        for stream, weight in texts:
            end = stream[-max(int(HELD_OUT * len(stream)), context) :]
            count = max(round(WINDOWS * weight / total), 1)
            windows.append(end.unfold(0, context, context)[:count])
        return cls(torch.cat(windows).flatten(), context)

    def loss(self, model: Loaded, spelling: Spelling | None = None) -> float:
        """Of a model, by token of the whole vocabulary."""
        config = PerplexityConfig(self.context, windows=0)
        found = perplexity(PrunableModel.of(model), self.stream, config, spelling=spelling)
        return math.log(found.perplexity)


def _ladder(
    job: Job[PruneConfig], loaded: Loaded, corpus: Corpus, held: HeldOut
) -> Iterator[tuple[int, float]]:
    """Sizes of the vocabulary, and by how much each raises the loss."""
    config, whole = job.config.vocabulary, len(loaded.tokenizer)
    asked = [config.vocabulary] if 0 < config.vocabulary < whole else []
    if not asked:
        yield whole, 0.0
    if not config.vocabulary:
        try:
            require_rows(loaded.model)
            asked = [128 * round(share * whole / 128) for share in RUNGS]
        except InputError as error:
            logger.warning("the vocabulary stays whole: %s", error)
    ticks, before = job.count("measuring vocabularies"), held.loss(loaded)
    for done, tokens in enumerate(asked, start=1):
        try:
            kept = chosen_tokens(replace(config, vocabulary=tokens), loaded, corpus)
        except InputError:
            if config.vocabulary:
                raise
            return  # fewer than have to stay
        small = trimmed(loaded, kept)
        spelling = Spelling.between(loaded.tokenizer, small.tokenizer, loaded.bos_token_id)
        yield tokens, held.loss(small, spelling) - before
        ticks(done, len(asked))


def _lost_by_rounding(loaded: Loaded, held: HeldOut, bits: Bits) -> float:
    """By how much so many bits raise the loss of the original."""
    if bits == "as-is":
        return 0.0
    before = held.loss(loaded)
    with rounded(PrunableModel.of(loaded), bits, loaded.dtype):
        return held.loss(loaded) - before


def settle(opened: "Opened", fit: Fit) -> None:
    """Writes the sizes in their bits, measures them on the held-out end of the learning text, and
    leaves the best."""
    job = opened.problem.job
    folder = job.run.folder / f"fit-{fit.asked}"
    if job.run.has(folder):
        return
    job.run.forget(folder)
    held = HeldOut.of(opened.texts.corpus, opened.original)
    before = held.loss(opened.original)
    figures = job.run.figures
    assert figures is not None, "sizes have been written"
    sizes = {one.size: one for one in figures.models}
    machine, made = MachineConfig(str(job.process.device), _dtype(opened.loaded)), list[Choice]()
    with atomic(folder) as place:
        for number, choice in enumerate(fit.choices):
            job.progress("storing in fewer bits", number, len(fit.choices), {})
            new = place.with_name(choice.bits)
            _store(job, sizes[f"{choice.keep:g}"], choice.bits, new)
            ratio = math.exp(held.loss(load(str(new), machine), opened.spelling) - before)
            made.append(replace(choice, bytes=weight_bytes(new), ratio=ratio))
        best = min(made, key=lambda choice: choice.ratio or math.inf)
        place.with_name(best.bits).rename(place)
        target = PrunableModel.of(load(str(place), machine))
        measured = opened.measuring(None).perplexity(target, "perplexity of what fits")
    job.run.update(folder, fit=replace(fit, choices=made, chosen=best.bits, measured=measured))


def _dtype(loaded: Loaded) -> Any:
    return dtype_name(loaded.dtype)


def _store(job: Job[PruneConfig], size: SizeResult, bits: Bits, new: Path) -> None:
    """Writes a size in its bits, calibrated on the learning text where that lies in files."""
    text, options = job.config.text, dict[str, Any]()
    if bits == "int4" and text.text and not text.may_be_written:
        options |= {"text": text.text, "text_field": text.text_field}
    if bits != "as-is":
        options |= {"embeddings": True, "device": str(job.process.device)}
    options["progress"] = job.progress
    convert(size.folder, to="folder" if bits == "as-is" else bits, output_dir=new, **options)
