"""A model -> text that it writes itself, to learn from where no data is given (data-free
distillation, LLM-QAT, arXiv 2305.17888).

Tokens are sampled at temperature 1: true samples of the model, on which the squared gradients are
its Fisher information. A document that ends is followed by another one in the same sequence, as in
the text of files. Every sequence has random numbers of its own, so that a sequence does not depend
on what is written beside it. What is written lies in the run folder, a file a batch:

    RUN/synthetic/0000.safetensors  0001.safetensors  …

S sequences, B of a batch, T tokens of each, V tokens of the vocabulary.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from disp_llm.config.errors import InputError
from disp_llm.config.parts import PerplexityConfig, TextConfig
from disp_llm.data.examples import HELD_OUT
from disp_llm.data.given import GivenText
from disp_llm.data.randomness import Stream, random_stream
from disp_llm.data.windows import usual_bos
from disp_llm.models.devices import free_memory
from disp_llm.models.kv_cache import empty_cache, with_cache
from disp_llm.models.loading import Loaded
from disp_llm.models.windows import fitting
from disp_llm.runs.folder import MADE_AGAIN, clock
from disp_llm.runs.job import Interrupted, Job
from disp_llm.runs.results import SyntheticText
from disp_llm.runs.tensors import read_tensors, write_tensors

STAGE = "writing text"
"""What progress calls it."""

FOLDER, TENSOR = "synthetic", "tokens"
"""The folder in that of the run, and the name of the tensor in its files: (B, T), int32."""

CPU_BATCH, MOST_AT_ONCE = 32, 256
"""Sequences at once on a CPU, and the most on a GPU."""

MEMORY_SHARE = 0.6
"""Of the free memory that the sequences written at once may take."""

RANDOM_STARTS = 0.5
"""Share of the documents that begin with a random token, so that they reach code, other languages
and rare subjects."""

CHANCES = 3
"""Random numbers of every token: which token, how a document begins there, and its first token."""

SEPARATOR = "<|endoftext|>"
"""What stands between documents in the training of several kinds of models (GPT-2, Qwen, SmolLM2).
"""


@dataclass(frozen=True)
class Documents:
    """How documents begin, and which tokens end them."""

    start: tuple[int, ...]
    """BOS, or EOS where there is no BOS; nothing = a random token."""
    before: tuple[int, ...]
    """What stands before a random token: BOS where the tokenizer adds one to every text."""
    ordinary: Int[Tensor, " N"]
    """Tokens that are not special."""
    vocabulary: int
    """Number of tokens that the tokenizer knows; a model may predict more, which mean nothing."""
    ends: frozenset[int]

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: Any) -> "Documents":
        """Those of a model and its tokenizer.

        What the chat template names opens or ends a turn, not a document: after the opening of a
        turn a model writes who speaks, and after its end comes the other side's turn.
        """
        known = tokenizer.added_tokens_decoder.items()
        special = {*tokenizer.all_special_ids, *(i for i, token in known if token.special)}

        def of_turn(token: int) -> bool:
            return tokenizer.convert_ids_to_tokens(token) in str(tokenizer.chat_template or "")

        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        adds = usual_bos(tokenizer) is not None
        first = bos if bos is not None else eos
        if first is not None and not adds and of_turn(first):
            first = tokenizer.get_vocab().get(SEPARATOR)
        ends = getattr(model.generation_config, "eos_token_id", None)
        ends = {*(ends if isinstance(ends, list) else [ends]), eos} - {None}
        return cls(
            start=() if first is None else (first,),
            before=(bos,) if adds else (),
            ordinary=torch.tensor([i for i in range(len(tokenizer)) if i not in special]),
            vocabulary=len(tokenizer),
            ends=frozenset(token for token in ends if not of_turn(token)),
        )

    def opening(self, kind: float, which: float) -> tuple[int, ...]:
        """How a document begins, by two uniform numbers."""
        if self.start and kind >= RANDOM_STARTS:
            return self.start
        return (*self.before, int(self.ordinary[int(which * len(self.ordinary))]))


class _Sampler(LogitsProcessor):
    """Chooses the next token of every sequence, and leaves nothing else possible."""

    def __init__(
        self,
        documents: Documents,
        chances: Float[Tensor, "B 3 T"],
        on_place: Callable[[int], None],
    ):
        self.documents, self.chances, self.on_place = documents, chances, on_place
        self.openings = [deque(self._opening(row, 0)) for row in range(len(chances))]
        """Tokens that come next in each sequence, whatever the model predicts."""

    def __call__(
        self, input_ids: Int[Tensor, "B t"], scores: Float[Tensor, "B W"]
    ) -> Float[Tensor, "B W"]:
        place = input_ids.shape[1]
        self.on_place(place)
        chances = self.chances[:, 0, place].to(scores.device)
        tokens = sampled(scores[:, : self.documents.vocabulary], chances).tolist()
        for row, (token, opening) in enumerate(zip(tokens, self.openings, strict=True)):
            if opening:
                tokens[row] = opening.popleft()
            elif token in self.documents.ends and place + 1 < self.chances.shape[2]:
                begins = self._opening(row, place + 1)  # what was just written is not repeated
                opening.extend(begins[1:] if begins[0] == token else begins)
        chosen = torch.tensor(tokens, device=scores.device)[:, None]
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)

    def _opening(self, row: int, place: int) -> tuple[int, ...]:
        return self.documents.opening(*self.chances[row, 1:, place].tolist())


def sampled(logits: Float[Tensor, "B V"], chances: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Tokens drawn by one uniform number each: the first at which the summed probability exceeds
    it. One number a token is the same on every device, and so is the token but for rounding.

    Raises:
        InputError: the model gives no finite numbers.
    """
    summed = logits.softmax(-1).cumsum(-1)
    total = summed[:, -1:]
    if not bool(total.isfinite().all()):
        raise InputError(
            "the model predicts what is no finite number", field="dtype", hint="try float32"
        )
    places = torch.searchsorted(summed, chances[:, None] * total, right=True)
    return places[:, 0].clamp(max=logits.shape[1] - 1)


def write_sequences(
    model: PreTrainedModel,
    documents: Documents,
    chances: list[torch.Generator],
    length: int,
    on_place: Callable[[int], None] = lambda place: None,
) -> Int[Tensor, "B T"]:
    """Sequences that are written side by side, one by each generator.

    Args:
        on_place: called after every token, with how many each of them has.
    """
    drawn = torch.stack([torch.rand(CHANCES, length, generator=one) for one in chances])
    sampler = _Sampler(documents, drawn, on_place)
    first = torch.tensor([[opening.popleft()] for opening in sampler.openings])
    # A model may come with penalties and beams, which settings of a call leave as they are.
    writer: Any = model
    own = model.generation_config
    writer.generation_config = GenerationConfig(do_sample=False, max_new_tokens=length - 1)
    try:
        written = writer.generate(
            first.to(model.device),
            attention_mask=torch.ones_like(first).to(model.device),
            logits_processor=LogitsProcessorList([sampler]),
            **with_cache(model, empty_cache(model, length)),
        )
    finally:
        writer.generation_config = own
    on_place(length)
    return written.cpu()


def fitting_batch(model: PreTrainedModel, length: int) -> int:
    """How many sequences of a length are written at once on the model's device."""
    config = model.config.get_text_config(decoder=True)
    layers = getattr(config, "per_layer_config", None) or [config] * config.num_hidden_layers
    cached = sum(map(_numbers_of_token, layers)) * length * model.dtype.itemsize
    predicted = 4 * torch.float32.itemsize * config.vocab_size
    fits = int(MEMORY_SHARE * free_memory(model.device) / (cached + predicted))
    return max(1, min(fits, CPU_BATCH if model.device.type == "cpu" else MOST_AT_ONCE))


def _numbers_of_token(layer: Any) -> int:
    """How many numbers a layer caches of a token, if it has keys and values of its own."""
    heads = getattr(layer, "num_key_value_heads", None) or layer.num_attention_heads
    width = getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads
    return 2 * heads * width


@dataclass(frozen=True)
class Needs:
    """How many tokens of synthetic text a task reads."""

    learning: int
    """Those that steps and calibration read; where time is the limit, the least of them."""
    held_out: int
    """Those that are only measured on."""
    seconds: float = 0.0
    """How long more of them are written than these; 0 = none are."""


def held_out(text: TextConfig, evaluation: PerplexityConfig, learning: int) -> int:
    """How many tokens of synthetic text are only measured on: those of the evaluation windows, or
    the usual share beside what is learned from; none where there is another text for it."""
    if text.has_evaluation:
        return 0
    return evaluation.tokens or math.ceil(learning * HELD_OUT / (1 - HELD_OUT))


@dataclass(frozen=True)
class Writer:
    """Lets a model write, and keeps what it has written."""

    job: Job
    loaded: Loaded
    needs: Needs
    begin: Callable[[], None] = lambda: None
    """Opens the run, before anything is written to it."""
    whose: str = "its"
    """What the name of the text calls the model."""
    ready: GivenText | None = None
    """What was written for several runs, of which this is one."""
    stream: Stream = "words"
    """What the sequences are drawn from: those of another stream are other ones."""
    skipped: int = 0
    """Sequences at the beginning of the stream that an earlier training has read."""

    @property
    def length(self) -> int:
        """Tokens of a sequence: of a window, or as many as the model can read."""
        return fitting(self.loaded.model, self.job.config.training.length)

    def write(self, share: float = 1.0) -> GivenText:
        """Synthetic text, as far as it is not there yet.

        Args:
            share: of the learning text that it is.
        """
        run, records = self.job.run, self.job.process.is_main
        if records and run.figures is None:
            self.begin()
        plan = self._plan(share)
        if records:
            run.update(synthetic=asdict(plan))
        with clock(run, "writing_s", records):
            tokens = torch.cat(self._batches(plan.sequences, self._least(share))).flatten()
        if records:
            run.update(synthetic=asdict(replace(plan, sequences=len(tokens) // self.length)))
        named = f"{self.whose} own text, {len(tokens):,} tokens"
        return GivenText(tokens=tokens, named=named, held_out=plan.held_out)

    def _plan(self, share: float) -> SyntheticText:
        """What will be written; what an earlier attempt has settled belongs to the run."""
        least, figures = self._least(share), self.job.run.figures
        if self.ready is not None:
            assert self.ready.tokens is not None
            sequences, held_out = len(self.ready.tokens) // self.length, self.ready.held_out or 0
        else:
            timed = self.needs.seconds > 0 and not self.job.config.text.self_tokens
            sequences = None if timed else least
            held_out = min(math.ceil(share * self.needs.held_out), least * self.length // 2)
        plan = SyntheticText(
            sequences,
            held_out,
            self.length,
            seed=self.job.config.machine.seed,
            revision=self.loaded.source["revision"],
        )
        settled = figures.synthetic if figures else None
        if settled is None:
            if figures and figures.source:
                raise InputError(
                    f"is not what {self.job.run.folder} was made of: that is not its own text",
                    field="text",
                    hint="give that text again, which may have lain in memory",
                )
            return plan
        names = [
            name
            for name in ("length", "seed", "revision")
            if getattr(plan, name) != getattr(settled, name)
        ]
        if names and not self.job.run.anyway:
            raise InputError(
                f"was written with another {' and '.join(names)}",
                field=str(self.job.run.folder / FOLDER),
                hint="bring back what it was, or begin in another `output_dir`",
            )
        return settled

    def _least(self, share: float) -> int:
        """How many sequences are needed, where nothing else says how many there are."""
        needed = math.ceil(share * (self.needs.learning + self.needs.held_out))
        return max(1, -(-(self.job.config.text.self_tokens or needed) // self.length))

    def _batches(self, planned: int | None, least: int) -> list[Int[Tensor, "B T"]]:
        """The sequences, read as far as they are there.

        Args:
            planned: how many; None = `least`, and more while there is time.
        """
        run = self.job.run
        until = time.perf_counter() + self.needs.seconds - (run.result().get("writing_s") or 0.0)
        parts: list[Tensor] = []
        done, at_once = 0, fitting_batch(self.loaded.model, self.length)
        while done < (planned or least) or (planned is None and time.perf_counter() < until):
            path = run.folder / FOLDER / f"{len(parts):04}.safetensors"
            if run.has(path):
                parts.append(self._kept(path))
            else:
                last = done + at_once if planned is None else min(done + at_once, planned)
                parts.append(self._written(range(done, last), planned or last))
                if self.job.process.is_main:
                    write_tensors(path, {TENSOR: parts[-1].int()})
                    run.update(path)
            done += len(parts[-1])
        return parts

    def _kept(self, path: Path) -> Int[Tensor, "B T"]:
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
            if self.job.stop_requested():
                raise Interrupted
            done = numbers.start * self.length + place * len(numbers)
            self.job.progress(STAGE, done, total * self.length, {})

        seed = self.job.config.machine.seed
        chances = [random_stream(self.stream, seed, self.skipped + number) for number in numbers]
        documents = Documents.of(self.loaded.model, self.loaded.tokenizer)
        return write_sequences(self.loaded.model, documents, chances, self.length, on_place)
