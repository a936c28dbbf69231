"""How the frozen weights are held while masks are learned."""

from dataclasses import dataclass
from typing import Literal

Shard = Literal["auto", "no", "full", "hybrid"]


@dataclass(frozen=True)
class FrozenConfig:
    """Where the weights lie that masks are learned for; what is exported is made of the original's.
    """

    shard: Shard = "auto"
    """How several processes hold the weights: all of them in each (no), a part in each (full), or
    all on every node and a part in each of its processes (hybrid). auto = full where they would not
    fit otherwise."""
