"""How a model writes its own learning text (`--text self`)."""

from dataclasses import dataclass, fields

from disp_llm.config.checks import (
    require_default,
    require_not_negative,
    require_positive,
    require_share,
)
from disp_llm.config.names import SELF


@dataclass(frozen=True)
class OwnWordsConfig:
    """What `--text self` writes: documents that the model draws token by token, which need no data
    (arXiv 2305.17888)."""

    self_temperature: float = 1.0
    """Temperature of the model's own words; 1 draws from what the model predicts, as it is."""
    self_random_start: float = 0.5
    """Share of the own documents that begin with a random token of the vocabulary, so that they
    reach code, other languages and rare subjects; the others begin with the BOS token
    or, where that opens a turn of the chat template, with <|endoftext|>."""
    self_chat: float = 0.0
    """Share of the own documents that begin as a user's turn of the chat template, so that the
    model writes question and answer; models without a template write none."""
    self_greedy: int = 0
    """Tokens at the start of each own document that are the likeliest ones instead of drawn."""
    self_batch: int = 0
    """Windows that are written at once; 0 = 32 on a CPU, and what fits the memory of a GPU."""
    self_tokens: int = 0
    """Number of own tokens; 0 = as many as the steps, the calibration and the evaluation read."""

    def validate(self, written: bool) -> None:
        """Refuses a temperature of 0, shares that are none, and settings where nothing is written.

        Args:
            written: whether the model may write some of what is learned from.

        Raises:
            InputError: naming the field.
        """
        if not written:
            what = "is of the model's own words, and none are written"
            names = (field.name for field in fields(self))
            require_default(self, names, what, f"leave it out, or add `text` {SELF}")
        require_positive(self_temperature=self.self_temperature)
        require_share(self_random_start=self.self_random_start, self_chat=self.self_chat)
        require_not_negative(
            self_greedy=self.self_greedy,
            self_batch=self.self_batch,
            self_tokens=self.self_tokens,
        )
