"""A model's demands on windows: how long they may be, which tokens they may hold, and whether they
begin with BOS."""

import logging
from typing import Any, TypeVar

from transformers import PreTrainedConfig, PreTrainedModel

from disp_llm.config.checks import unread, usual_settings
from disp_llm.config.errors import InputError
from disp_llm.config.recipes import with_settings
from disp_llm.config.settings import settings_of
from disp_llm.models.architectures import Family

logger = logging.getLogger(__name__)

Config = TypeVar("Config")

WINDOWS = {"context", "length", "calibration_length"}
"""Settings that are the length of a window in tokens."""

POSITIONS = ("max_position_embeddings", "max_seq_len")
"""Configuration keys of the number of positions. `max_seq_len` is MPT's: it has no position
embedding, but builds its attention biases for only so many tokens."""

STRETCHED = ("linear", "dynamic")
"""Kinds of rotary scaling that extend the first training's positions by `factor`."""


def required_bos(model: PreTrainedModel, family: Family) -> int | None:
    """Returns the BOS token of a model that needs one before its text (Gemma), else None."""
    return model.config.get_text_config().bos_token_id if family.requires_bos else None


def positions_of(described: PreTrainedConfig) -> int | None:
    """Returns how many tokens a model can read; None if its configuration does not say."""
    config = described.get_text_config()
    scaling = getattr(config, "rope_parameters", None) or {}
    stated = (getattr(config, name, None) for name in POSITIONS)
    most = next((number for number in stated if number is not None), None)
    if most and scaling.get("rope_type") in STRETCHED:  # the stated length may be unscaled
        most = int(most * scaling.get("factor", 1))
    return most if most and most > 0 else None


def rows_of(model: PreTrainedModel) -> int:
    """Returns how many tokens have a row in a model's embedding: fewer than the tokenizer has,
    where somebody added some to that alone."""
    embedding: Any = model.get_input_embeddings()
    return len(embedding.weight)


PIECES = 2
"""Pieces per token for which default windows leave room if the vocabulary is to shrink."""


def can_read(model: PreTrainedModel, tokens: int) -> bool:
    """Returns whether a model can read so many tokens."""
    most = positions_of(model.config)
    return not most or tokens <= most


def require_positions(model: PreTrainedModel, tokens: int, field: str) -> None:
    """Refuses windows longer than the model can read.

    Args:
        field: setting that gives their length.

    Raises:
        InputError: the windows are too long.
    """
    if not can_read(model, tokens):
        most = positions_of(model.config)
        raise InputError(
            f"{tokens} tokens, and the model has {most} positions",
            field=field,
            hint=f"give at most {most}",
        )


def require_pieces(model: PreTrainedModel, tokens: int) -> None:
    """Refuses windows that a model cannot read once they are spelled in its fewer tokens.

    Raises:
        InputError: the windows are too long.
    """
    if not can_read(model, tokens):
        raise InputError(
            f"a window takes {tokens} of the tokens that are left, more than the model can read",
            field="context",
            hint="give a smaller one, or keep more tokens",
        )


def fitting(model: PreTrainedModel, tokens: int) -> int:
    """Returns `tokens`, but at most as many as the model can read."""
    return min(tokens, positions_of(model.config) or tokens)


def within_positions(
    config: Config, *models: PreTrainedConfig, fewer_tokens: bool = False
) -> Config:
    """Shortens windows of default length to what all of the models can read.

    Only settings that are read and have their usual value change, with one warning for all of them.
    `require_positions` later refuses other windows that are too long.

    Args:
        fewer_tokens: True if the vocabulary is to shrink, so windows must leave room for pieces.
    """
    positions = min((n for n in map(positions_of, models) if n), default=None)
    if positions is None:
        return config
    most = positions // PIECES if fewer_tokens else positions
    usual, names = usual_settings(config), WINDOWS - unread(config)
    windows = [one for name, one in settings_of(type(config)).items() if name in names]
    shortened = {
        one.name: one.of(config)
        for one in windows
        if one.of(config) == one.of(usual) and one.of(config) > most
    }
    if shortened:
        were = ", ".join(f"`{name}` {tokens}" for name, tokens in shortened.items())
        said = "the model has %d positions, shortened to %d were: %s"
        logger.warning(said, positions, most, were)
    return with_settings(config, dict.fromkeys(shortened, most))
