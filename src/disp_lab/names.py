"""Names of what is compared, and in which order tables show it."""

from typing import get_args

from disp_llm.config.methods import method_names
from disp_llm.config.names import WeightKind

MASKS = (
    *("learned", "fisher", "taylor", "flap", "wanda", "sheared"),
    *("ddp", "grasprune", "gisp", "reap", "magnitude", "random"),
)
"""Methods that choose masks, in the order of tables; what others add comes after them."""

IN_TIME = "latency"
"""The setting of `learned` whose sizes are shares of the original's time."""

BASELINES = (
    *("greedy", "tyr", "slicegpt", "depth", "svd_llm", "joint_rank_k", "mpo"),
    *("magnitude_2_4", "wanda_2_4", "sparsegpt_2_4", "dass_2_4"),
)
"""What does more than drop dimensions: the files of `disp_lab/baselines`."""

OURS = ("learned", "masks_only", "masks_and_scales", "domain", "disp", IN_TIME)
"""What this package recommends, with one thing changed or none; all other rows are of others."""

ORIGINAL = "original"
"""The original as a row of a comparison: in the dtype of the run, and quantised."""

WEIGHT_KINDS: tuple[WeightKind, ...] = get_args(WeightKind)
"""What the weights of blocks can be quantised to, for a comparison."""


def mask_methods() -> tuple[str, ...]:
    """All methods that choose masks: ours, those of the lab, those of others."""
    there = method_names()
    return tuple(dict.fromkeys([*(name for name in MASKS if name in there), *there]))
