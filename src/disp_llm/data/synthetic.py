"""A model -> text that it writes itself, used for learning if no data is given (data-free
distillation, LLM-QAT, arXiv 2305.17888).

Tokens are sampled at temperature 1: true samples of the model, on which the squared gradients are
its Fisher information. Every sequence begins with the token that separates documents. In half of
them a random token follows, to reach code, other languages and rare subjects. Nothing ends a
sequence: after EOS the model begins the next document. `RUN/synthetic.safetensors` stores the
text; an interrupted attempt starts over.

B sequences of a batch, T tokens of each, t tokens so far, V tokens of the vocabulary.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from disp_llm.config.errors import InputError
from disp_llm.data.sources import GivenText, Needs
from disp_llm.data.windows import usual_bos
from disp_llm.models.loading import Loaded
from disp_llm.models.windows import fitting
from disp_llm.runs.folder import MADE_AGAIN, clock
from disp_llm.runs.job import Interrupted, Job
from disp_llm.runs.tensors import read_tensors, write_tensors

STAGE = "writing text"
"""Name of the stage in progress reports."""

FILE, PARTS = "synthetic.safetensors", ("learning", "held_out")
"""File in the run folder, and its two int32 tensors of token ids."""

CPU_BATCH, GPU_BATCH = 32, 128
"""Sequences per batch; halved whenever memory runs out."""


def synthetic_text(
    job: Job, loaded: Loaded, needs: Needs, noise: torch.Generator, share: float = 1.0
) -> GivenText:
    """Returns text that the model writes: that in the run folder if there is one, else new text.

    Args:
        share: share of the learning text that the model writes.
    """
    path = job.run.folder / FILE
    if job.run.has(path):
        file = read_tensors(path, MADE_AGAIN)
        file.require(set(PARTS) == set(file.tensors), f"holds other tensors than {PARTS}")
        learning, measured = (file.tensors[name] for name in PARTS)
    else:
        with clock(job.run, "writing_s", job.process.is_main):
            learning, measured = _write(job, loaded, needs, noise, share)
        if job.process.is_main:
            write_tensors(path, dict(zip(PARTS, (learning, measured), strict=True)))
            job.run.update(path)
    tokens = torch.cat([learning, measured]).long()
    named = f"synthetic text, {len(tokens):,} tokens"
    return GivenText(tokens=tokens, named=named, held_out=len(measured))


def _write(
    job: Job, loaded: Loaded, needs: Needs, noise: torch.Generator, share: float
) -> tuple[Int[Tensor, " N"], Int[Tensor, " M"]]:
    """Returns the tokens to learn from and the held-out tokens."""
    length = fitting(loaded.model, job.config.training.length)
    asked = job.config.text.self_tokens
    least = max(1, math.ceil((asked or share * (needs.learning + needs.held_out)) / length))
    until = 0.0 if asked else time.perf_counter() + needs.seconds
    at_once = CPU_BATCH if loaded.model.device.type == "cpu" else GPU_BATCH
    parts: list[Tensor] = []
    while (done := sum(map(len, parts))) < least or time.perf_counter() < until:
        count = min(at_once, least - done) if done < least else at_once
        on_token = partial(_report, job, done * length, count, max(least, done + count) * length)
        try:
            written = sample(loaded.model, loaded.tokenizer, count, length, noise, on_token)
            parts.append(written.int())
        except torch.OutOfMemoryError:
            if count == 1:
                raise
            at_once = count // 2
    tokens = torch.cat(parts).flatten()
    measured = min(math.ceil(share * needs.held_out), least * length // 2)
    return tokens[: len(tokens) - measured].clone(), tokens[len(tokens) - measured :].clone()


def _report(job: Job, before: int, count: int, total: int, place: int) -> None:
    if job.stop_requested():
        raise Interrupted
    job.progress(STAGE, before + place * count, total, {})


def sample(
    model: PreTrainedModel,
    tokenizer: Any,
    count: int,
    length: int,
    noise: torch.Generator,
    on_token: Callable[[int], None] = lambda place: None,
) -> Int[Tensor, "B T"]:
    """Samples one batch of `count` sequences.

    Args:
        on_token: called after every token with the number of tokens of each sequence so far.
    """
    start = torch.full((count, 1), _first_token(tokenizer), device=model.device)
    devices = [model.device] if model.device.type == "cuda" else []
    # The model's own penalties and beams would survive settings of a call, so replace all of them.
    writer: Any = model
    own = model.generation_config
    writer.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=length - 1
    )
    try:
        with torch.random.fork_rng(devices):  # `generate` takes no generator
            torch.manual_seed(int(torch.randint(2**62, (), generator=noise)))
            written = writer.generate(
                start,
                attention_mask=torch.ones_like(start),
                logits_processor=LogitsProcessorList([_Writing(tokenizer, on_token)]),
            )
    finally:
        writer.generation_config = own
    on_token(length)
    return written.cpu()


def _first_token(tokenizer: Any) -> int:
    """Returns a document's first token: BOS if the tokenizer adds it, else the token that separated
    documents in training, else BOS, EOS or 0.

    BOS of a chat model may open a turn: after it alone the model writes the name of a speaker, not
    a document.
    """
    adds_bos = usual_bos(tokenizer) is not None
    separator = None if adds_bos else tokenizer.get_vocab().get(SEPARATOR)
    known = (separator, tokenizer.bos_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in known if token is not None)


SEPARATOR = "<|endoftext|>"


class _Writing(LogitsProcessor):
    """Bans ids beyond the tokenizer, and draws the second token of every other sequence uniformly,
    without special tokens."""

    def __init__(self, tokenizer: Any, on_token: Callable[[int], None]):
        known = tokenizer.added_tokens_decoder.items()
        self.special = [*tokenizer.all_special_ids, *(i for i, token in known if token.special)]
        self.vocabulary, self.on_token = len(tokenizer), on_token

    def __call__(
        self, input_ids: Int[Tensor, "B t"], scores: Float[Tensor, "B V"]
    ) -> Float[Tensor, "B V"]:
        self.on_token(input_ids.shape[1])
        if not bool(scores.logsumexp(-1).isfinite().all()):
            raise InputError(
                "the model predicts what is no finite number", field="dtype", hint="try float32"
            )
        scores = scores.clone()
        if input_ids.shape[1] == 1:
            scores[1::2] = 0.0
            known = [token for token in self.special if token < scores.shape[1]]
            scores[1::2, known] = -torch.inf
        scores[:, self.vocabulary :] = -torch.inf
        return scores
