"""What `disp-llm bench` can be asked."""

from dataclasses import dataclass, field
from typing import Annotated

from disp_llm.config.bounds import Batch, Length, Points, Some, Word
from disp_llm.config.effect import check_settings
from disp_llm.config.parts import MachineConfig
from disp_llm.config.settings import POSITIONAL


@dataclass(frozen=True)
class BenchConfig:
    """Measure speed, memory and load time of a folder against its original, on this machine."""

    model: Annotated[Word, POSITIONAL]
    """Exported folder, or any model."""
    against: str = ""
    """Model to compare with. Default: the original of an exported folder."""
    lengths: Annotated[tuple[Length, ...], Some] = (128, 512)
    """Prompt lengths of prefill, in tokens."""
    batches: Annotated[tuple[Batch, ...], Some] = (1, 8)
    """Numbers of sequences that are decoded together."""
    context: Length = 128
    """Tokens in the KV cache while decoding."""
    rounds: Points = 12
    """Times that each model is timed, in turn."""
    compile: bool = False
    """Run both models through torch.compile."""
    machine: MachineConfig = field(default_factory=MachineConfig)

    def validate(self) -> None:
        """Refuses work that cannot be timed."""
        check_settings(self)
