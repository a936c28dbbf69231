"""What a model asks of the windows that it reads: how long they may be, and whether they begin with
a BOS."""

from transformers import PreTrainedModel

from disp_llm.config.errors import InputError
from disp_llm.models.architectures import Family


def required_bos(model: PreTrainedModel, family: Family) -> int | None:
    """The BOS token of a model that needs one before its text (Gemma), else None."""
    return model.config.get_text_config().bos_token_id if family.requires_bos else None


STRETCHED = ("linear", "dynamic")
"""Kinds of rotary positions that reach `factor` times as far as the model was first trained."""


def require_positions(model: PreTrainedModel, tokens: int, field: str) -> None:
    """Refuses windows that are longer than what the model was made for.

    Args:
        field: the setting that gives their length.

    Raises:
        InputError: they are.
    """
    config = model.config.get_text_config()
    scaling = getattr(config, "rope_parameters", None) or {}
    most = getattr(config, "max_position_embeddings", None)
    if most and scaling.get("rope_type") in STRETCHED:  # it may be the length before
        most = int(most * scaling.get("factor", 1))
    if most and tokens > most:
        raise InputError(
            f"{tokens} tokens, and the model has {most} positions",
            field=field,
            hint=f"give at most {most}",
        )
