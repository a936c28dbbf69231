"""Names of the compared methods, in the order in which tables show them."""

from typing import get_args

from disp_llm.config.methods import method_names
from disp_llm.config.names import WeightKind

MASKS = (
    *("learned", "fisher", "taylor", "flap", "wanda", "sheared"),
    *("ddp", "grasprune", "gisp", "reap", "magnitude", "random"),
)
"""Methods that choose masks, in table order; methods of other packages follow them."""

IN_TIME = "latency"
"""The variant of `learned` whose sizes are shares of the original's time for a prompt."""

BASELINES = (
    *("greedy", "tyr", "slicegpt", "depth", "svd_llm", "joint_rank_k", "mpo"),
    *("magnitude_2_4", "wanda_2_4", "sparsegpt_2_4", "dass_2_4"),
)
"""Baselines, which do more than drop dimensions, in table order; `disp_lab/baselines` has them."""

OURS = ("learned", "masks_only", "masks_and_scales", "domain", "disp", IN_TIME)
"""`learned` as we recommend it and with one thing changed; all other rows are of others."""

ORIGINAL = "original"
"""Name of the original's rows: in the dtype of the run, and quantised."""

WEIGHT_KINDS: tuple[WeightKind, ...] = get_args(WeightKind)
"""Formats to which a comparison can quantise the blocks' weights."""


def mask_methods() -> tuple[str, ...]:
    """Returns the known methods that choose masks: those of `MASKS` first, then those of others."""
    there = method_names()
    return tuple(dict.fromkeys([*(name for name in MASKS if name in there), *there]))
