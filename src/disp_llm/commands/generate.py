"""Answers of a model by greedy decoding, with its original beside it."""

import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TextStreamer

from disp_llm.commands.api import called, takes
from disp_llm.config.commands import AnswerConfig, ChatConfig, GenerateConfig
from disp_llm.config.errors import InputError, model_is
from disp_llm.data.tokens import require_embedded
from disp_llm.evaluation.sample import likeliest
from disp_llm.exporter.exported import require_original
from disp_llm.models.loading import Loaded, load
from disp_llm.models.windows import fitting

Show = Callable[[str], None]
"""Called with every piece of an answer as it comes."""

ORIGINAL = "original"
"""Value of `against` that means the model an exported folder was made from."""

Messages = list[dict[str, str]]


@takes(GenerateConfig)
def generate(model: GenerateConfig | str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Answers a prompt.

    Returns:
        `answers`, per model: `model`, `text`, `tokens`, and `tokens_per_s` after the first token.
    """
    config = called(GenerateConfig, model, options).config
    return answer(config, load_models(config), lambda name, text: None)


def answer(
    config: GenerateConfig, models: dict[str, Loaded], show: Callable[[str, str], None]
) -> dict[str, Any]:
    """Answers a prompt, and shows each model's name with each piece of its answer."""
    answers = []
    for name, loaded in models.items():
        said = [{"role": "user", "content": config.prompt}]
        found = _answered(loaded, said, config.answers, partial(show, name))
        answers.append({"model": name} | found)
    return {"answers": answers}


def chat(
    config: ChatConfig,
    models: dict[str, Loaded],
    lines: Iterable[str],
    show: Callable[[str, str], None],
) -> dict[str, Any]:
    """Answers line after line. Each model reads what was said before and its own earlier answers.

    Args:
        lines: what a user says; an empty line starts anew.
        show: called with the name of a model and a piece of its answer.

    Returns:
        `answers`, as from `generate`, each with its `prompt`.
    """
    said: dict[str, Messages] = {name: [] for name in models}
    answers = []
    for line in lines:
        if not line.strip():
            said = {name: [] for name in models}
            continue
        for name, loaded in models.items():
            said[name].append({"role": "user", "content": line.strip()})
            while len(said[name]) > 1 and _room(loaded, said[name], config.answers) < 1:
                del said[name][:2]  # the oldest turn, for which there are no positions left
            found = _answered(loaded, said[name], config.answers, partial(show, name))
            said[name].append({"role": "assistant", "content": found["text"]})
            answers.append({"model": name, "prompt": line.strip()} | found)
    return {"answers": answers}


def load_models(config: GenerateConfig | ChatConfig) -> dict[str, Loaded]:
    """Loads the model, and the one to compare with if asked for; returns them by name."""
    against = config.answers.against
    if against == ORIGINAL:
        against = require_original(config.model)
    models = {config.model: load(config.model, config.machine)}
    if against:
        with model_is("against"):
            models[against] = load(against, config.machine)
    return models


def _as_asked(loaded: Loaded, said: Messages, template: str) -> list[int]:
    """Returns a conversation as tokens: by the chat template, or line by line without one."""
    tokenizer: Any = loaded.tokenizer
    if template == "chat" and not tokenizer.chat_template:
        raise InputError("has no chat template", field="model", hint="use a `template` of plain")
    if template != "plain" and tokenizer.chat_template:
        found = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=True)
        return found["input_ids"]
    return tokenizer("\n".join(message["content"] for message in said))["input_ids"]


def _room(loaded: Loaded, said: Messages, how: AnswerConfig) -> int:
    """Returns how many tokens an answer can have after the conversation's."""
    asked = len(_as_asked(loaded, said, how.template))
    return fitting(loaded.model, asked + how.max_new_tokens) - asked


class _Timed(TextStreamer):
    """Passes text on when words are complete, and records when tokens came."""

    def __init__(self, tokenizer: Any, show: Show) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.show = show
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        if not self.next_tokens_are_prompt:
            self.times.append(time.perf_counter())
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.show(text + "\n" * stream_end)


def _answered(loaded: Loaded, said: Messages, how: AnswerConfig, show: Show) -> dict[str, Any]:
    """Returns an answer to a conversation, of at most as many tokens as positions are left."""
    model: Any = loaded.model
    asked = _as_asked(loaded, said, how.template)
    require_embedded(torch.tensor(asked), loaded.tokenizer, loaded.rows, "prompt")
    room = _room(loaded, said, how)
    if room < 1:
        what = f"has {len(asked)} tokens, and the model reads no more"
        raise InputError(what, field="prompt", hint="say less")
    prompt, streamer = torch.tensor([asked], device=model.device), _Timed(loaded.tokenizer, show)
    with likeliest(model) as write, torch.no_grad():
        made = write(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=room,
            pad_token_id=0,
            streamer=streamer,
        )[0, len(asked) :]
    times = streamer.times
    seconds = times[-1] - times[0]
    return {
        "text": loaded.tokenizer.decode(made, skip_special_tokens=True),
        "tokens": len(made),
        "tokens_per_s": (len(times) - 1) / seconds if seconds else None,
    }
