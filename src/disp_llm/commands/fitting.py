"""From a size such as 100 MB to a smaller model: chooses how many tokens stay, in how many bits
weights are stored, and how much of the blocks is then kept.

Holds out the end of the learning text. Before learning, measures the cost of fewer tokens and of
rounding on that end, and predicts the cost of a smaller share of the blocks. That decides the
tokens, and one size to learn for each promising number of bits. All these models are written and
measured on the same end, and the best one is the answer.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from disp_llm.commands.convert import write_converted
from disp_llm.commands.room import Room, expected_loss
from disp_llm.commands.vocabulary import chosen_tokens
from disp_llm.config.commands import ConvertConfig
from disp_llm.config.errors import InputError
from disp_llm.config.names import Bits
from disp_llm.config.parts import BudgetConfig, PerplexityConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.data.sources import HELD_OUT
from disp_llm.data.spelling import Spelling
from disp_llm.data.windows import Corpus, Stream
from disp_llm.evaluation.perplexity import perplexity
from disp_llm.exporter.folders import weight_bytes
from disp_llm.masks.budget import least_share
from disp_llm.masks.prunable import PrunableModel
from disp_llm.methods import method_named
from disp_llm.models.loading import Loaded, load
from disp_llm.models.trimming import require_trimmable, trimmed
from disp_llm.models.windows import PIECES, can_read, fitting
from disp_llm.runs.files import atomic
from disp_llm.runs.job import Job
from disp_llm.runs.results import Choice, Fit
from disp_llm.training.problem import PruningProblem
from disp_llm.training.rounding import rounded

if TYPE_CHECKING:
    from disp_llm.commands.prune import Opened

logger = logging.getLogger(__name__)

RUNGS = (0.85, 0.7, 0.55, 0.4, 0.3, 0.2, 0.1)
"""Shares of the vocabulary that are tried."""

STEP = 128
"""Number of tokens that sizes of the vocabulary are multiples of."""

WINDOW, WINDOWS = 512, 16
"""Tokens of a window of that end, and how many are read."""


def fitted(
    problem: PruningProblem, loaded: Loaded, held: "HeldOut"
) -> tuple[Job[PruneConfig], Fit]:
    """Returns the job with a vocabulary and sizes of block parameters in place of the asked size,
    and what led to them.

    Args:
        problem: of the whole model, with a budget of block parameters.

    Raises:
        InputError: the original already fits, or nothing that can be made of it does.
    """
    job, config = problem.job, problem.job.config
    found = job.run.figures
    fit = found.fit if found is not None and found.fit is not None else _fit(problem, loaded, held)
    keeps = tuple(dict.fromkeys(choice.keep for choice in fit.choices))
    kept = replace(config.vocabulary, vocabulary=fit.vocabulary)
    config = replace(config, keep=keeps, budget=BudgetConfig(), vocabulary=kept)
    return replace(job, config=config), fit


def _fit(problem: PruningProblem, loaded: Loaded, held: "HeldOut") -> Fit:
    job, config, dense = problem.job, problem.job.config, problem.dense
    room = Room.of(config, dense, dense.head_weight.element_size())
    # Embedding rows without a token are cut only if tokens are.
    whole = max(len(dense.head_weight), len(loaded.tokenizer))
    least = least_share(problem.budget, problem.align)
    asked = _rungs(config.vocabulary.vocabulary, loaded, room, whole)
    room.require(least, min(asked))  # before anything is measured
    before = held.loss(loaded)
    ladder = list(_ladder(job, loaded, held, before, asked))
    room.require(least, min(tokens for tokens, _ in ladder))
    found = dict[tuple[Bits, int], Choice]()
    for bits in room.ways:
        rounding = _lost_by_rounding(loaded, held, bits, before)
        for tokens, lost in ladder:
            keep = room.keep(bits, tokens)
            if keep >= least:
                expected = lost + rounding + expected_loss(keep)
                found[bits, tokens] = Choice(bits, keep, math.exp(expected))
    _, tokens = min(found, key=lambda key: found[key].expected)
    choices = [found[bits, tokens] for bits in room.ways if (bits, tokens) in found]
    choices.sort(key=lambda choice: choice.expected)
    near = [one for one in choices if one.expected <= NEAR * choices[0].expected]
    if method_named(config.method).one_size:
        near = near[:1]
    return Fit(str(room.size), room.limit, 0 if tokens == whole else tokens, near)


NEAR = 1.5
"""A choice is made only if its predicted perplexity is at most so many times the best one's; of a
method that chooses for one size at a time, only the best one."""


@dataclass(frozen=True)
class HeldOut:
    """End of the learning text in windows, or its last examples."""

    stream: Stream
    context: int
    before: Corpus
    """Learning text before that end, from which everything is learned. A text too short to part is
    in both."""

    @classmethod
    def of(cls, corpus: Corpus, loaded: Loaded) -> "HeldOut":
        """Takes windows of every source in proportion to its weight; examples only if there is no
        text."""
        texts = [
            (stream, weight)
            for stream, weight in zip(corpus.streams, corpus.weights, strict=True)
            if isinstance(stream, Tensor)
        ]
        if not texts:
            examples: Any = corpus.streams[0]
            some = examples.examples[-max(int(HELD_OUT * len(examples.examples)), 1) :]
            before = replace(examples, examples=examples.examples[: -len(some)] or some)
            longest = len(examples.longest.tokens)
            return cls(
                replace(examples, examples=some), longest, replace(corpus, streams=(before,))
            )
        context = fitting(loaded.model, PIECES * WINDOW) // PIECES
        context = min(context, *(len(stream) for stream, _ in texts))
        total, windows = sum(weight for _, weight in texts), list[Tensor]()
        for stream, weight in texts:
            end = stream[-_ending(stream, context) :]
            count = max(round(WINDOWS * weight / total), 1)
            windows.append(end.unfold(0, context, context)[:count])
        before = tuple(
            stream[: -_ending(stream, context)]
            if isinstance(stream, Tensor) and len(stream) >= 2 * context
            else stream
            for stream in corpus.streams
        )
        return cls(torch.cat(windows).flatten(), context, replace(corpus, streams=before))

    def loss(self, model: Loaded, spelling: Spelling | None = None) -> float:
        """Returns a model's mean loss per token of the whole vocabulary."""
        found = perplexity(PrunableModel.of(model), self.stream, self._windows, spelling=spelling)
        return math.log(found.perplexity)

    def can_be_read_by(self, model: Loaded, spelling: Spelling) -> bool:
        """Returns whether a model has a position for every piece of the longest window."""
        longest = spelling.longest_window(self.stream, self._windows)
        return can_read(model.model, longest)

    @property
    def _windows(self) -> PerplexityConfig:
        return PerplexityConfig(self.context, windows=0)


def _ending(stream: Tensor, context: int) -> int:
    """Returns how many tokens of a text are held out: one window at least."""
    return max(int(HELD_OUT * len(stream)), context)


def _rungs(asked: int, loaded: Loaded, room: Room, whole: int) -> list[int]:
    """Returns the vocabulary sizes to measure, largest first: the whole one, shares of it and the
    largest that leaves room for all blocks; or the one that is asked for.

    Args:
        whole: rows of the whole embedding, which may be more than there are tokens.
    """
    tokens = len(loaded.tokenizer)
    if asked:
        return [asked if asked < tokens else whole]
    try:
        require_trimmable(loaded)
    except InputError as error:
        logger.warning("the vocabulary stays whole: %s", error)
        return [whole]
    rungs = {STEP * round(share * tokens / STEP) for share in RUNGS}
    rungs |= {STEP * int(way.tokens(room.limit) // STEP) for way in room.ways.values()}
    return [whole, *sorted((one for one in rungs if 0 < one < tokens), reverse=True)]


def _ladder(
    job: Job[PruneConfig], loaded: Loaded, held: HeldOut, before: float, asked: list[int]
) -> Iterator[tuple[int, float]]:
    """Yields vocabulary sizes, and by how much each raises the loss."""
    config, ticks = job.config.vocabulary, job.count("measuring vocabularies")
    for done, tokens in enumerate(asked, start=1):
        if tokens >= len(loaded.tokenizer):
            yield tokens, 0.0
            continue
        try:
            kept = chosen_tokens(replace(config, vocabulary=tokens), loaded, held.before)
        except InputError:
            if config.vocabulary:
                raise
            return  # fewer than have to stay
        small = trimmed(loaded, kept)
        spelling = Spelling.between(loaded.tokenizer, small.tokenizer, loaded.bos_token_id)
        assert spelling is not None, "fewer tokens have gone"
        if not config.vocabulary and not held.can_be_read_by(small, spelling):
            return  # windows of fewer tokens are even longer
        yield tokens, held.loss(small, spelling) - before
        ticks(done, len(asked))


def _lost_by_rounding(loaded: Loaded, held: HeldOut, bits: Bits, before: float) -> float:
    """Returns by how much rounding to so many bits raises the original's loss."""
    if bits == "as-is":
        return 0.0
    with rounded(PrunableModel.of(loaded), bits, loaded.dtype):
        return held.loss(loaded) - before


def settle(opened: "Opened", fit: Fit) -> None:
    """Writes the sizes in their bits, measures them on the end of the learning text, and keeps the
    best."""
    job = opened.problem.job
    folder = job.run.folder / fit.folder_name
    if job.run.has(folder):
        return
    job.run.forget(folder)
    held = HeldOut.of(opened.texts.corpus, opened.original)
    before = held.loss(opened.original)
    machine = opened.loaded.machine(job.config.machine, job.process.device)
    made = list[Choice]()
    with atomic(folder) as place:
        for number, choice in enumerate(fit.choices):
            job.progress("storing in fewer bits", number, len(fit.choices), {})
            new = place.with_name(choice.bits)
            _store(opened, f"{choice.keep:g}", choice.bits, new)
            ratio = math.exp(held.loss(load(str(new), machine), opened.spelling) - before)
            made.append(replace(choice, bytes=weight_bytes(new), ratio=ratio))
        best = min(made, key=lambda choice: choice.ratio or math.inf)
        place.with_name(best.bits).rename(place)
        target = PrunableModel.of(load(str(place), machine))
        measured = opened.measuring(None).perplexity(target, "perplexity of what fits")
    job.run.update(folder, fit=replace(fit, choices=made, chosen=best.bits, measured=measured))


def _store(opened: "Opened", size: str, bits: Bits, new: Path) -> None:
    """Writes a size in its bits; int4 is calibrated on what was learned from, not on the end that
    decides."""
    job = opened.problem.job
    to, embeddings = ("folder", False) if bits == "as-is" else (bits, True)
    device = str(job.process.device)
    config = ConvertConfig(job.run.size_folder(size), to, new, device=device, embeddings=embeddings)
    write_converted(config, job.progress, opened.problem.corpus)
