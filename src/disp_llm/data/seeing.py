"""Examples with a picture -> what a model that sees takes, by its own processor.

The processor writes the prompt, in which some tokens stand for the picture, and makes tensors of
its pixels; the answer is tokenised as that of other examples. What has one number a token is made
as long as prompt and answer together.

N tokens of an example.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from disp_llm.config.errors import InputError, said_by
from disp_llm.data.examples import Example, GivenExamples
from disp_llm.data.pictures import FIELD, decoded
from disp_llm.data.rows import Unusable
from disp_llm.data.windows import Given, ids_of, opening_of

PLACEHOLDERS = ("boi_token", "image_token")
"""What processors call the token that stands for a picture in a prompt; Gemma's is the first."""


@dataclass(frozen=True)
class Shown:
    """An example as a model sees it."""

    tokens: Int[Tensor, " N"]
    counted: Bool[Tensor, " N"]
    given: Given


@dataclass(frozen=True)
class Shower:
    """Shows examples to one model."""

    given: GivenExamples
    processor: Any
    bos_token_id: int | None
    """A token that every example begins with, where the model needs one."""

    @classmethod
    def of(
        cls, given: GivenExamples, make: Callable[[], Any] | None, bos_token_id: int | None
    ) -> "Shower":
        """With the processor of a model.

        Raises:
            InputError: the model has none, or one that reads no pictures.
        """
        processor = None if make is None else make()
        if getattr(processor, "image_processor", None) is None:
            raise InputError(
                "needs a model that sees, and the processor of this one reads no pictures",
                field=FIELD,
                hint="give `examples` or text, or a model with a processor of pictures beside it",
            )
        return cls(given, processor, bos_token_id)

    def shown(self, example: Example) -> Shown:
        """The tokens and the pixels of an example.

        Raises:
            InputError: the processor or its chat template refuses it, or the picture has gone.
        """
        try:
            return self._shown(example)
        except InputError:
            raise
        except Unusable as error:
            what = f"{example.place}, {error.what}"
            raise InputError(what, field=FIELD, hint=error.hint) from error
        except Exception as error:  # processors raise what they like
            raise InputError(
                f"{example.place}, is refused by the processor ({said_by(error)})",
                field=FIELD,
                hint="correct that example",
            ) from error

    def later(self, example: Example) -> Callable[[], Given]:
        """Gives what is shown of it, made anew whenever it is asked for: the pixels of all examples
        would not fit the memory."""
        return partial(_given, self, example)

    def _shown(self, example: Example) -> Shown:
        assert example.picture is not None
        before, answer, chat = self._written(example)
        picture = decoded(example.picture)
        made = self.processor(
            text=[before], images=[picture], return_tensors="pt", add_special_tokens=False
        )
        if "labels" in made:  # PaliGemma's: zeros for an answer would say that it is seen at once
            raise Unusable(
                "has a prompt that the model reads in both directions, which is not known here",
                "learn from text",
            )
        prompt = made.pop("input_ids")
        made.pop("attention_mask", None)
        tokenizer = self.processor.tokenizer
        ids = ids_of(tokenizer, answer, not chat, before)
        opening = opening_of(tokenizer, self.bos_token_id, chat)
        if opening == prompt[0, :1].tolist():
            opening = []  # the processor writes BOS too
        first, last = (torch.tensor(part, dtype=torch.long) for part in (opening, ids))
        tokens = torch.cat([first, prompt[0], last])
        counted = torch.arange(len(tokens)) >= len(tokens) - len(ids)
        widen = partial(_widened, prompt.shape, (len(opening), len(ids)))
        given = {name: widen(value) for name, value in made.items() if isinstance(value, Tensor)}
        return Shown(tokens, counted, given)

    def _written(self, example: Example) -> tuple[str, str, bool]:
        """Prompt and answer as text, and whether the chat template has written them."""
        asked, said = example.turns
        can = bool(getattr(self.processor, "chat_template", None))
        if self.given.template == "plain" or (self.given.template == "auto" and not can):
            named = (getattr(self.processor, name, None) for name in PLACEHOLDERS)
            placeholder = next((token for token in named if isinstance(token, str)), None)
            if placeholder is None:
                raise Unusable("needs a chat template, and the processor has none", "add one to it")
            shown = "" if placeholder in asked.content else f"{placeholder}\n"
            return f"{shown}{asked.content}{example.between}", said.content, False
        if not can:
            raise Unusable(
                "needs a chat template, and the processor has none", "give `template` plain"
            )
        seen = [{"type": "image"}, {"type": "text", "text": asked.content}]
        told = [{"type": "text", "text": said.content}]
        messages: list[dict[str, Any]] = [{"role": asked.role, "content": seen}]
        answered = [*messages, {"role": said.role, "content": told}]
        apply = self.processor.apply_chat_template
        before = apply(messages, tokenize=False, add_generation_prompt=True)
        after = apply(answered, tokenize=False)
        if not after.startswith(before):
            raise Unusable(
                "is written otherwise by the chat template once it is answered",
                "give `template` plain",
            )
        return before, after[len(before) :].rstrip(), True


def _given(shower: Shower, example: Example) -> Given:
    return shower.shown(example).given


def _widened(shape: torch.Size, more: tuple[int, int], value: Tensor) -> Tensor:
    """Numbers of the tokens of a prompt, with zeros for those before and behind it; others as they
    are.

    Args:
        shape: (1, tokens of the prompt).
    """
    return nn.functional.pad(value, more) if value.shape == shape else value
