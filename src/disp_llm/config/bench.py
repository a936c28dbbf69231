"""What `disp-llm bench` can be asked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from disp_llm.config.bounds import Batch, Length, Points, Some, Word, require_declared
from disp_llm.config.errors import InputError
from disp_llm.config.parts import MachineConfig
from disp_llm.config.settings import POSITIONAL


@dataclass(frozen=True)
class BenchConfig:
    """Measure speed, memory and load time of a folder against its original, on this machine."""

    folder: Annotated[Word, POSITIONAL]
    """An exported folder, or any model."""
    against: Word
    """The model that it is compared with: hub id, folder, or smollm2-135m."""
    lengths: Annotated[tuple[Length, ...], Some] = (128, 512)
    """Lengths of the prompts of prefill, in tokens."""
    batches: Annotated[tuple[Batch, ...], Some] = (1, 8)
    """Numbers of sequences that are decoded together."""
    context: Length = 128
    """Tokens in the KV cache while decoding."""
    rounds: Points = 12
    """Number of times that each is timed, in turn."""
    compile: bool = False
    """Run both models through torch.compile."""
    plot: Path | None = None
    """Draw the result into this .png or .svg file."""
    machine: MachineConfig = field(default_factory=MachineConfig)

    def validate(self) -> None:
        """Refuses work that cannot be timed.

        Raises:
            InputError: naming the field.
        """
        require_declared(self)
        if self.plot is not None and self.plot.suffix not in (".png", ".svg"):
            raise InputError(f"{self.plot}", field="plot", hint="name a .png or .svg file")
