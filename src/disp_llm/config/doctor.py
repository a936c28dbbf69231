"""What `disp-llm doctor` can be asked."""

from dataclasses import dataclass
from typing import Annotated

from disp_llm.config.bounds import Batch, Size, Window, Word
from disp_llm.config.checks import require_sizes
from disp_llm.config.effect import check_settings
from disp_llm.config.learning import TrainingConfig
from disp_llm.config.settings import POSITIONAL


@dataclass(frozen=True)
class DoctorConfig:
    """Say whether a model is supported, what each size costs, and whether learning fits here."""

    model: Annotated[Word, POSITIONAL]
    """Hub id, folder, GGUF file, or smollm2-135m."""
    keep: tuple[Size, ...] = (0.8, 0.7, 0.6, 0.5)
    """Sizes to list."""
    length: Window = TrainingConfig.length
    """Tokens of a training window, for the memory estimate."""
    batch: Batch = TrainingConfig.batch
    """Training windows of a batch, for the same."""
    device: str = "auto"
    """Device whose memory is compared: cpu, cuda, ..."""

    def validate(self) -> None:
        """Refuses sizes that no model has."""
        check_settings(self)
        require_sizes(keep=self.keep)
