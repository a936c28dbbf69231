"""How a model writes its own learning text (`--text self`)."""

from dataclasses import dataclass, fields

from disp_llm.config.bounds import AnyBatch, AnyTokens, Share, Temperature
from disp_llm.config.effect import Use
from disp_llm.config.names import SELF


@dataclass(frozen=True)
class OwnWordsConfig:
    """What `--text self` writes: documents that the model draws token by token, which need no data
    (arXiv 2305.17888)."""

    self_temperature: Temperature = 1.0
    """Temperature of the model's own words; 1 draws from what the model predicts, as it is."""
    self_random_start: Share = 0.5
    """Share of the own documents that begin with a random token of the vocabulary, so that they
    reach code, other languages and rare subjects; the others begin with the BOS token
    or, where that opens a turn of the chat template, with <|endoftext|>."""
    self_chat: Share = 0.0
    """Share of the own documents that begin as a user's turn of the chat template, so that the
    model writes question and answer; models without a template write none."""
    self_greedy: AnyTokens = 0
    """Tokens at the start of each own document that are the likeliest ones instead of drawn."""
    self_batch: AnyBatch = 0
    """Windows that are written at once; 0 = 32 on a CPU, and what fits the memory of a GPU."""
    self_tokens: AnyTokens = 0
    """Number of own tokens; 0 = as many as the steps, the calibration and the evaluation read."""


OWN_WORDS = Use(
    " ".join(entry.name for entry in fields(OwnWordsConfig)),
    when=lambda config: config.text.may_be_written,
    what="is of the model's own words, and none are written",
    instead=f"add `text` {SELF}",
)
"""Of every command that reads learning text."""
