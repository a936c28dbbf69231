"""What `disp-llm gguf` can be asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from disp_llm.config.bounds import require_declared
from disp_llm.config.checks import require_new
from disp_llm.config.settings import POSITIONAL


@dataclass(frozen=True)
class GgufConfig:
    """Write a folder that was pruned with --sites mlp_mid heads as a GGUF file for llama.cpp."""

    folder: Annotated[Path, POSITIONAL]
    """An exported folder, such as run/keep-0.5."""
    original: Path
    """A GGUF file of the original: vocabulary and embedding are taken from it."""
    to: Path
    """The new file."""
    dtype: Literal["f16", "bf16", "f32"] = "f16"
    """Data type of the weights; llama.cpp's own tools quantise further."""

    def validate(self) -> None:
        """Refuses a place that is taken or cannot be written.

        Raises:
            InputError: naming the field.
        """
        require_declared(self)
        require_new(to=self.to)
