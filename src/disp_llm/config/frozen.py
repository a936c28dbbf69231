"""How the frozen weights are held while masks are learned."""

from dataclasses import dataclass
from typing import Literal

from disp_llm.config.errors import InputError

Shard = Literal["auto", "no", "full", "hybrid"]
BasePrecision = Literal["same", "bfloat16", "int8", "nf4"]
Offload = Literal["no", "cpu", "disk"]


@dataclass(frozen=True)
class FrozenConfig:
    """Where the weights lie that masks are learned for, and in how many bits; what is measured and
    exported is made of the original's."""

    shard: Shard = "auto"
    """How several processes hold the weights: all of them in each (no), a part in each (full), or
    all on every node and a part in each of its processes (hybrid). auto = full where they would not
    fit otherwise."""
    base_precision: BasePrecision = "same"
    """Precision of the linear layers' weights while scores and masks are learned: that of the
    model, bfloat16, int8 or nf4 (4 bits, in groups of 64). Implies --gradient-checkpointing."""
    offload: Offload = "no"
    """Where the blocks' weights wait until their block runs: in the machine's memory (cpu), or in
    the model's files (disk). Implies --gradient-checkpointing."""

    @property
    def is_fetched(self) -> bool:
        """Whether a block's weights are put together when it runs."""
        return self.base_precision != "same" or self.offload != "no"

    def validate(self) -> None:
        """Refuses what excludes each other."""
        if self.offload == "disk" and self.base_precision != "same":
            raise InputError(
                "weights in files have the precision that they were stored in",
                field="base_precision",
                hint="give `offload` cpu, or leave one of them out",
            )
        if self.is_fetched and self.shard not in ("auto", "no"):
            raise InputError(
                "cannot be given together with `offload` or `base_precision`",
                field="shard",
                hint="leave it out",
            )
