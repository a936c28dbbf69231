"""A model -> text that it writes itself, to learn from where no data is given (data-free
distillation, LLM-QAT, arXiv 2305.17888).

Tokens are drawn one after the other from the whole distribution that the model predicts: true
samples of the model, on which the squared gradients are its Fisher information. A document that
ends is followed by another one in the same window, as in the text of files.

B sequences at once, S sequences, T tokens of each, V tokens of the vocabulary.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from disp_llm.config.errors import InputError
from disp_llm.config.words import OwnWordsConfig
from disp_llm.data.windows import usual_bos
from disp_llm.models.devices import free_memory
from disp_llm.models.kv_cache import empty_cache, with_cache

CPU_BATCH, MOST_AT_ONCE = 32, 256
"""Sequences at once on a CPU, and the most on a GPU."""

MEMORY_SHARE = 0.6
"""Of the free memory that the sequences written at once may take."""

CHANCES = 3
"""Random numbers of every token: which token, how a document begins there, and its first token."""

SEPARATOR = "<|endoftext|>"
"""What stands between documents in the training of several kinds of models (GPT-2, Qwen, SmolLM2).
"""

QUESTION = "QUESTION"
"""Stands for what a user says while the chat template is taken apart."""

Noise = Callable[[int], torch.Generator]
"""The generator of the random numbers of a sequence, by its number: whatever is written at once,
and wherever an attempt begins, a sequence is drawn by the same numbers."""


@dataclass(frozen=True)
class Openings:
    """How documents begin, and which tokens end them."""

    start: tuple[int, ...]
    """Of a plain document: BOS, or EOS where there is no BOS; where that opens a turn of the chat
    template, what separated documents in training; nothing = a random token."""
    before: tuple[int, ...]
    """What stands before a random token: BOS where the tokenizer adds one to every text."""
    ordinary: Int[Tensor, " N"]
    """Tokens that are not special."""
    vocabulary: int
    """Number of tokens that the tokenizer knows; a model may predict more, which mean nothing."""
    ends: frozenset[int]
    """Tokens that end a document."""
    user: tuple[int, ...] = ()
    """The template's opening of a user's turn."""
    reply: tuple[int, ...] = ()
    """What the template puts between the question and the answer."""
    turn_ends: frozenset[int] = frozenset()
    """The token that ends a turn of the template, where there is one."""

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: Any, chat: bool) -> "Openings":
        """Those of a model and its tokenizer.

        Args:
            chat: whether documents begin as a user's turn.

        Raises:
            InputError: the chat template cannot be used.
        """
        special = set(tokenizer.all_special_ids)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special |= {token for token, facts in added.items() if facts.special}
        ordinary = [token for token in range(len(tokenizer)) if token not in special]
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        first = bos if bos is not None else eos
        adds = usual_bos(tokenizer) is not None
        user, reply = (), ()
        if tokenizer.chat_template:
            try:
                user, reply = _turns(tokenizer)
            except InputError:
                if chat:
                    raise
        turn_ends = frozenset(reply[:1]) & special
        # Chat models of one kind have the opening of a turn as their BOS: after it alone they
        # write the name of a speaker, and no document.
        if not adds and user[:1] == (first,):
            first = tokenizer.get_vocab().get(SEPARATOR)
        return cls(
            start=() if first is None else (first,),
            before=(bos,) if adds else (),
            ordinary=torch.tensor(ordinary),
            vocabulary=len(tokenizer),
            # What ends a turn ends no document: the other side's turn follows it.
            ends=frozenset(_ends(model, eos) - turn_ends),
            user=user if chat else (),
            reply=reply,
            turn_ends=turn_ends,
        )


def _ends(model: PreTrainedModel, eos: int | None) -> set[int]:
    """Ids of the tokens that end a text, of which a model may have several."""
    named = getattr(model.generation_config, "eos_token_id", None)
    several = named if isinstance(named, list) else [named]
    return {token for token in [*several, eos] if token is not None}


def _turns(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of the chat template before a question, and between it and the answer.

    Raises:
        InputError: the template cannot be used.
    """
    import jinja2

    said = [{"role": "user", "content": QUESTION}]
    try:
        whole = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise _no_template(str(error)) from error
    before, found, after = whole.partition(QUESTION)
    if not found:
        raise _no_template("it leaves out what the user says")
    user, reply = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (before, after))
    return tuple(user), tuple(reply)


def _no_template(why: str) -> InputError:
    return InputError(
        f"the chat template of the model cannot be used ({why})", field="self_chat", hint="give 0"
    )


@dataclass
class _Sequence:
    """One sequence while it is written."""

    openings: Openings
    settings: OwnWordsConfig
    chances: Float[Tensor, "3 T"]
    forced: deque[int] = field(default_factory=deque)
    """Tokens that come next, whatever the model predicts."""
    turn: Literal["none", "question", "answer"] = "none"
    """Whose turn of the chat template is being written."""
    begun: int = 0
    """Where the model's own tokens of the document begin."""

    def open(self, place: int, after: int | None = None) -> None:
        """Begins a document at a place; `after` is the token before it."""
        kind, which = self.chances[1:, place].tolist()
        openings, settings = self.openings, self.settings
        chat = settings.self_chat if openings.user else 0.0
        random = kind < chat + (1 - chat) * settings.self_random_start
        self.turn = "question" if kind < chat else "none"
        if self.turn == "question":
            tokens = openings.user
        elif random or not openings.start:
            token = int(openings.ordinary[int(which * len(openings.ordinary))])
            tokens = (*openings.before, token)
        else:
            tokens = openings.start
        self._force(tokens, after)
        self.begun = place + len(self.forced)

    def _force(self, tokens: tuple[int, ...], after: int | None) -> None:
        """Makes tokens come next; one that was just written is not repeated."""
        self.forced.extend(tokens[1:] if tokens[:1] == (after,) else tokens)

    def greedy(self, place: int) -> bool:
        """Whether the likeliest token comes at a place."""
        return place - self.begun < self.settings.self_greedy

    def next(self, place: int, drawn: int) -> int:
        """The token at a place, where the model has drawn one."""
        if self.forced:
            return self.forced.popleft()
        ends, turn_ends = drawn in self.openings.ends, drawn in self.openings.turn_ends
        if self.turn == "question" and (ends or turn_ends):
            self.turn = "answer"
            self._force(self.openings.reply, drawn)
        elif ends or (turn_ends and self.turn == "answer"):
            self.open(min(place + 1, self.chances.shape[1] - 1), drawn)
        return drawn


def write_sequences(
    model: PreTrainedModel,
    openings: Openings,
    numbers: range,
    length: int,
    settings: OwnWordsConfig,
    noise: Noise,
    on_place: Callable[[int], None],
) -> Int[Tensor, "B T"]:
    """The sequences of some numbers, written side by side.

    Args:
        on_place: called after every token, with how many each of them has.

    Raises:
        InputError: the model gives no finite numbers.
    """
    chances = torch.stack([torch.rand(CHANCES, length, generator=noise(n)) for n in numbers])
    sequences = [_Sequence(openings, settings, own) for own in chances]
    for sequence in sequences:
        sequence.open(0)
    choices = chances[:, 0].to(model.device)  # (B, T)
    written = torch.empty(len(numbers), length, dtype=torch.long)
    cached = with_cache(model, empty_cache(model, length))
    drawn = [-1] * len(numbers)
    for place in range(length):
        found = [one.next(place, token) for one, token in zip(sequences, drawn, strict=True)]
        written[:, place] = torch.tensor(found)
        on_place(place + 1)
        if place + 1 < length:
            inputs = written[:, place : place + 1].to(model.device)
            with torch.no_grad():
                made = model(input_ids=inputs, **cached)
            logits = made.logits[:, -1, : openings.vocabulary].float()
            likeliest = torch.tensor([one.greedy(place + 1) for one in sequences])
            chosen = _draw(logits / settings.self_temperature, choices[:, place + 1])
            chosen = torch.where(likeliest.to(chosen.device), logits.argmax(-1), chosen)
            drawn = chosen.tolist()
    return written


def _draw(logits: Float[Tensor, "B V"], chances: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
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
