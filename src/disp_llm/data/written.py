"""The model's own words in the folder of a run: a file a batch, each whole or not there, so that an
attempt goes on after the last one that an earlier one has finished.

    RUN/words/0000.safetensors  0001.safetensors  …

S sequences, B of a batch, T tokens of each.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from disp_llm.config.errors import InputError
from disp_llm.config.parts import PerplexityConfig, TextConfig
from disp_llm.config.words import OwnWordsConfig
from disp_llm.data.examples import HELD_OUT
from disp_llm.data.own_words import Openings, fitting_batch, write_sequences
from disp_llm.data.randomness import Stream, random_stream
from disp_llm.data.sources import GivenText
from disp_llm.models.loading import Loaded
from disp_llm.models.windows import fitting
from disp_llm.runs.figures import OwnWords
from disp_llm.runs.files import write_tensors
from disp_llm.runs.folder import MADE_AGAIN, Run, clock
from disp_llm.runs.job import Interrupted, Job, never
from disp_llm.runs.progress import ProgressCallback, silent
from disp_llm.runs.tensors import read_tensors

STAGE = "writing own words"
"""What progress calls it."""

FOLDER = "words"
"""The folder of the files in that of the run."""

MOST_IN_A_FILE = 1024
"""Sequences in a file of words that were written for several runs."""

TENSOR = "tokens"
"""The name of what a file holds: (B, T), int32."""


@dataclass(frozen=True)
class Needs:
    """How many of its own tokens a task reads."""

    learning: int
    """Those that steps and calibration read; where time is the limit, the least of them."""
    held_out: int
    """Those that are only measured on."""
    seconds: float = 0.0
    """How long more of them are written than these; 0 = none are."""


def held_out(text: TextConfig, evaluation: PerplexityConfig, learning: int) -> int:
    """How many own tokens are only measured on: those of the evaluation windows, or the usual share
    beside what is learned from; none where there is another text for it.

    Args:
        learning: tokens that are learned from.
    """
    if text.has_evaluation:
        return 0
    return evaluation.tokens or math.ceil(learning * HELD_OUT / (1 - HELD_OUT))


@dataclass(frozen=True)
class Writer:
    """Lets a model write, and keeps what it has written."""

    model: PreTrainedModel
    tokenizer: Any
    settings: OwnWordsConfig
    length: int
    """Tokens of a sequence."""
    seed: int
    revision: str
    """Of the model."""
    needs: Needs
    run: Run
    records: bool = True
    """Whether this process is the one that writes to the run."""
    begin: Callable[[], None] = lambda: None
    """Opens the run, before anything is written to it."""
    whose: str = "its"
    """What the name of the text calls the model."""
    ready: GivenText | None = None
    """What was written for several runs, of which this is one."""
    progress: ProgressCallback = silent
    stop_requested: Callable[[], bool] = never
    stream: Stream = "words"
    """What the sequences are drawn from: those of another stream are other ones."""
    skipped: int = 0
    """Sequences at the beginning of the stream that an earlier training has read."""

    @classmethod
    def of(
        cls,
        job: Job,
        loaded: Loaded,
        needs: Needs,
        length: int,
        begin: Callable[[], None] = lambda: None,
        whose: str = "its",
        ready: GivenText | None = None,
        stream: Stream = "words",
        skipped: int = 0,
    ) -> "Writer":
        """The writer of a job, whose settings say how it writes."""
        return cls(
            loaded.model,
            loaded.tokenizer,
            job.config.words,
            fitting(loaded.model, length),
            job.config.machine.seed,
            loaded.source["revision"],
            needs,
            job.run,
            job.process.is_main,
            begin,
            whose,
            ready,
            job.progress,
            job.stop_requested,
            stream,
            skipped,
        )

    def write(self, share: float = 1.0) -> GivenText:
        """Own words, as far as they are not there yet.

        Args:
            share: of the learning text that they are.

        Raises:
            InputError: a file has changed, words of other settings are there, or the model gives no
                finite numbers.
            Interrupted: the task was asked to stop; finished batches are kept.
        """
        if self.records:
            self.begin()
        plan = self._plan(share)
        self._record(own_words=asdict(plan))
        with clock(self.run, "writing_s", self.records):
            tokens = torch.cat(self._batches(plan.sequences, self._least(share))).flatten()
        self._record(own_words=asdict(replace(plan, sequences=len(tokens) // self.length)))
        temperature = self.settings.self_temperature
        return GivenText(
            tokens=tokens,
            named=f"{self.whose} own words, {len(tokens):,} tokens, temperature {temperature:g}",
            held_out=plan.held_out,
        )

    def _plan(self, share: float) -> OwnWords:
        """What will be written; what an earlier attempt has settled belongs to the run."""
        if self.ready is not None:
            assert self.ready.tokens is not None
            sequences, held_out = len(self.ready.tokens) // self.length, self.ready.held_out or 0
        else:
            timed = self.needs.seconds > 0 and not self.settings.self_tokens
            sequences = None if timed else self._least(share)
            held_out = math.ceil(share * self.needs.held_out)
            held_out = min(held_out, self._least(share) * self.length // 2)
        settings, figures = self.settings, self.run.figures
        plan = OwnWords(
            sequences=sequences,
            held_out=held_out,
            length=self.length,
            temperature=settings.self_temperature,
            random_start=settings.self_random_start,
            chat=settings.self_chat,
            greedy=settings.self_greedy,
            seed=self.seed,
            revision=self.revision,
        )
        settled = figures.own_words if figures else None
        if settled is None:
            if figures and figures.source:
                raise InputError(
                    f"is not what {self.run.folder} was made of: those are not its own words",
                    field="text",
                    hint="give that text again, which may have lain in memory",
                )
            return plan
        again = replace(plan, sequences=settled.sequences, held_out=settled.held_out)
        if again != settled and not self.run.anyway:
            names = [
                f.name for f in fields(again) if getattr(again, f.name) != getattr(settled, f.name)
            ]
            raise InputError(
                f"were written with another {' and '.join(names)}",
                field=str(self.run.folder / FOLDER),
                hint="bring back what it was, or begin in another `output_dir`",
            )
        return settled

    def _least(self, share: float) -> int:
        """How many sequences are needed, where nothing else says how many there are."""
        needs = self.needs
        tokens = self.settings.self_tokens or math.ceil(share * (needs.learning + needs.held_out))
        return max(1, -(-tokens // self.length))

    def _batches(self, planned: int | None, least: int) -> list[Int[Tensor, "B T"]]:
        """The sequences, read as far as they are there.

        Args:
            planned: how many; None = `least`, and more while there is time.
        """
        spent = self.run.result().get("writing_s") or 0.0
        until = time.perf_counter() + self.needs.seconds - spent
        parts: list[Tensor] = []
        done, at_once = 0, 0
        while done < (planned or least) or (planned is None and time.perf_counter() < until):
            path = self.run.folder / FOLDER / f"{len(parts):04}.safetensors"
            if self.run.has(path):
                part = self._kept(path)
            else:
                at_once = at_once or self._at_once()
                last = done + at_once if planned is None else min(done + at_once, planned)
                part = self._written(range(done, last), planned or last)
                if self.records:
                    write_tensors(path, {TENSOR: part.int()})
                    self.run.update(path)
            parts.append(part)
            at_once, done = at_once or len(part), done + len(part)
        return parts

    def _at_once(self) -> int:
        """How many sequences the first batch has, which all others then have too."""
        if self.ready is not None:
            return MOST_IN_A_FILE
        return self.settings.self_batch or fitting_batch(self.model, self.length)

    def _record(self, **values: Any) -> None:
        if self.records:
            self.run.update(**values)

    def _kept(self, path: Path) -> Int[Tensor, "B T"]:
        """The sequences of a file."""
        file = read_tensors(path, MADE_AGAIN)
        file.require(TENSOR in file.tensors, f"there is no {TENSOR}")
        count = len(file.tensors[TENSOR])
        return file.like(TENSOR, (max(count, 1), self.length), torch.int32).long()

    def _written(self, numbers: range, total: int) -> Int[Tensor, "B T"]:
        """The sequences of some numbers, as they were written for several runs, or now.

        Args:
            total: how many there will be, for progress.
        """
        if self.ready is not None:
            assert self.ready.tokens is not None
            return self.ready.tokens.view(-1, self.length)[numbers.start : numbers.stop]

        def on_place(place: int) -> None:
            if self.stop_requested():
                raise Interrupted
            done = numbers.start * self.length + place * len(numbers)
            self.progress(STAGE, done, total * self.length, {})

        def noise(number: int) -> torch.Generator:
            return random_stream(self.stream, self.seed, self.skipped + number)

        openings = Openings.of(self.model, self.tokenizer, self.settings.self_chat > 0)
        return write_sequences(
            self.model, openings, numbers, self.length, self.settings, noise, on_place
        )
