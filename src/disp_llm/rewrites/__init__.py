"""Every rival that does more than drop dimensions: what `compare` sets beside masks.

A rewriting method gets a `Task` and a `Context` and returns a maker of models of any size.
"""

from collections.abc import Callable
from dataclasses import dataclass

from disp_llm.config import RewriteName
from disp_llm.learn import Task
from disp_llm.methods.context import Context
from disp_llm.rewrites.depth import depth
from disp_llm.rewrites.greedy import greedy
from disp_llm.rewrites.joint_rank_k import joint_rank_k
from disp_llm.rewrites.mpo import mpo
from disp_llm.rewrites.rewrite import Maker
from disp_llm.rewrites.semi_structured import dass_2_4, magnitude_2_4, wanda_2_4
from disp_llm.rewrites.slicegpt import slicegpt
from disp_llm.rewrites.sparsegpt import sparsegpt_2_4
from disp_llm.rewrites.svd_llm import svd_llm


@dataclass(frozen=True)
class Rewrite:
    """A way to rewrite a model."""

    prepare: Callable[[Task, Context], Maker]
    reads_text: bool = True
    """Whether it takes calibration sequences."""


REWRITES: dict[RewriteName, Rewrite] = {
    "greedy": Rewrite(greedy),
    "slicegpt": Rewrite(slicegpt),
    "depth": Rewrite(depth),
    "svd_llm": Rewrite(svd_llm),
    "joint_rank_k": Rewrite(joint_rank_k, reads_text=False),
    "mpo": Rewrite(mpo, reads_text=False),
    "magnitude_2_4": Rewrite(magnitude_2_4, reads_text=False),
    "wanda_2_4": Rewrite(wanda_2_4),
    "sparsegpt_2_4": Rewrite(sparsegpt_2_4),
    "dass_2_4": Rewrite(dass_2_4),
}
