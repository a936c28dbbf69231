"""What `disp-llm doctor` can be asked."""

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar

from disp_llm.config.bounds import Batch, Length, Seconds, Size, Window, Word, require_declared
from disp_llm.config.checks import require_sizes
from disp_llm.config.effect import Use, require_used
from disp_llm.config.errors import InputError
from disp_llm.config.learning import TrainingConfig
from disp_llm.config.parts import BudgetConfig
from disp_llm.config.settings import POSITIONAL
from disp_llm.config.targets import BYTES, Target

DEVICES = re.compile(r"(?:(\d+)x)?(\d.*)")
"""`4x80GB`: how many, and the memory of each."""


MOST_DEVICES = 2**16


@dataclass(frozen=True)
class DoctorConfig:
    """Say whether a model is supported, which sites it has, what each keep costs, if it fits."""

    USES: ClassVar = (
        Use(
            "workload_length workload_batch",
            when=lambda config: config.fit,
            what="is of the memory that the model is to run in, and none is named",
            instead="give `fit`",
        ),
        Use(
            "seconds",
            when=lambda config: not (config.devices and config.seconds),
            what="measures the device that is here, and others are asked about",
            instead="leave `devices` out",
        ),
    )

    model: Annotated[Word, POSITIONAL]
    """Hub id, folder, GGUF file, or smollm2-135m."""
    keep: tuple[Size, ...] = (0.8, 0.7, 0.6, 0.5)
    """Sizes to list."""
    length: Window = TrainingConfig.length
    """Tokens of a training window, for the memory estimate."""
    batch: Batch = TrainingConfig.batch
    """Training windows of a batch, for the same."""
    measure: bool = False
    """Also load the model and time alignments of its widths on this machine; `prune` then uses the
    best one."""
    device: str = "auto"
    """Device whose memory is compared: cpu, cuda, ..."""
    devices: str = ""
    """Other devices to compare with, such as 80GB or 4x80GB. Default: what is here."""
    fit: str = ""
    """Memory that the model is to run in, such as 8GB, for its weights and the KV cache of
    --workload-batch sequences of --workload-length tokens: say what share of them fits, and how
    to ask `prune` for it."""
    workload_length: Length = BudgetConfig.workload_length
    """Tokens of a sequence in that cache."""
    workload_batch: Batch = BudgetConfig.workload_batch
    """Sequences in it."""
    seconds: Seconds = 10.0
    """How long the speed of this device is measured, for the time that learning takes; 0 = not."""

    @property
    def elsewhere(self) -> tuple[int, float] | None:
        """How many other devices are asked about, and the bytes of each; None = what is here."""
        found = DEVICES.fullmatch(self.devices)
        return (int(found[1] or 1), _bytes(found[2])) if found else None

    @property
    def memory(self) -> float:
        """Bytes that the model is to run in; 0 = none are named."""
        return _bytes(self.fit)

    def validate(self) -> None:
        """Refuses sizes that no model has.

        Raises:
            InputError: naming the field.
        """
        require_declared(self)
        require_used(self)
        require_sizes(keep=self.keep)
        if self.fit and not self.memory:
            raise InputError(f"'{self.fit}' is no size", field="fit", hint="give one such as 8GB")
        if self.devices and (
            self.elsewhere is None or min(self.elsewhere) <= 0 or self.elsewhere[0] > MOST_DEVICES
        ):
            raise InputError(
                f"'{self.devices}' is no number of devices with their memory",
                field="devices",
                hint="give 80GB, or 4x80GB for several",
            )


def _bytes(said: str) -> float:
    """What a size with its unit is; 0 where it is none."""
    try:
        found = Target.of(said)
    except InputError:
        return 0.0
    return found.value if found.counts == BYTES else 0.0
