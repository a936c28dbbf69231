"""What `disp-llm doctor` can be asked."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from disp_llm.config.checks import require_at_least, require_paths, require_sizes
from disp_llm.config.learning import TrainingConfig


@dataclass(frozen=True)
class DoctorConfig:
    """Say whether a model is supported, which sites it has, what each keep costs, if it fits."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Hub id, folder, GGUF file, or smollm2-135m."""
    keep: tuple[float, ...] = (0.8, 0.7, 0.6, 0.5)
    """Sizes to list."""
    length: int = TrainingConfig.length
    """Tokens of a training window, for the memory estimate."""
    batch: int = TrainingConfig.batch
    """Training windows of a batch, for the same."""
    measure: bool = False
    """Also load the model and time alignments of its widths on this machine; `prune` then uses the
    best one."""
    json: bool = False
    """Print one JSON object on standard output."""
    device: str = "auto"
    """Device whose memory is compared: cpu, cuda, ..."""

    def validate(self) -> None:
        """Refuses sizes that no model has.

        Raises:
            InputError: naming the field.
        """
        require_paths(self)
        require_sizes(keep=self.keep)
        require_at_least(2, length=self.length)
        require_at_least(1, batch=self.batch)
