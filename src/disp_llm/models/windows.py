"""What a model asks of the windows that it reads: how long they may be, and whether they begin with
a BOS."""

import logging
from typing import TypeVar

from transformers import PreTrainedConfig, PreTrainedModel

from disp_llm.config.checks import unread, usual_settings
from disp_llm.config.errors import InputError
from disp_llm.config.recipes import with_settings
from disp_llm.config.settings import settings_of
from disp_llm.models.architectures import Family

logger = logging.getLogger(__name__)

Config = TypeVar("Config")

WINDOWS = {"context", "length", "calibration_length"}
"""Settings that give the length of a window in tokens."""

POSITIONS = ("max_position_embeddings", "max_seq_len")
"""What configurations call it; MPT's, which has no rows of positions to run out of, makes its
biases for so many tokens and no more."""

STRETCHED = ("linear", "dynamic")
"""Kinds of rotary positions that reach `factor` times as far as the model was first trained."""


def required_bos(model: PreTrainedModel, family: Family) -> int | None:
    """The BOS token of a model that needs one before its text (Gemma), else None."""
    return model.config.get_text_config().bos_token_id if family.requires_bos else None


def positions_of(described: PreTrainedConfig) -> int | None:
    """How many tokens a model can read; None where nothing says so."""
    config = described.get_text_config()
    scaling = getattr(config, "rope_parameters", None) or {}
    stated = (getattr(config, name, None) for name in POSITIONS)
    most = next((number for number in stated if number is not None), None)
    if most and scaling.get("rope_type") in STRETCHED:  # it may be the length before
        most = int(most * scaling.get("factor", 1))
    return most if most and most > 0 else None


PIECES = 2
"""Into how many pieces a token may fall in windows of the usual length, where tokens are to go."""


def can_read(model: PreTrainedModel, tokens: int) -> bool:
    """Whether a model was made for so many tokens."""
    most = positions_of(model.config)
    return not most or tokens <= most


def require_positions(model: PreTrainedModel, tokens: int, field: str) -> None:
    """Refuses windows that are longer than what the model was made for.

    Args:
        field: the setting that gives their length.

    Raises:
        InputError: they are.
    """
    if not can_read(model, tokens):
        most = positions_of(model.config)
        raise InputError(
            f"{tokens} tokens, and the model has {most} positions",
            field=field,
            hint=f"give at most {most}",
        )


def fitting(model: PreTrainedModel, tokens: int) -> int:
    """That many tokens, or as many as the model can read."""
    return min(tokens, positions_of(model.config) or tokens)


def within_positions(
    config: Config, *models: PreTrainedConfig, fewer_tokens: bool = False
) -> Config:
    """Settings whose windows are no longer than what every one of some models can read.

    Only windows that are read and that nobody asked for are shortened, with one warning for all of
    them: those of the usual length. What was asked for is refused later (`require_positions`).

    Args:
        fewer_tokens: whether some tokens are to go, so that windows are to leave room for pieces.
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
