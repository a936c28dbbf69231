"""Baselines: rivals that do more than drop dimensions."""

from disp_lab.baselines import depth, greedy, joint_rank_k, mpo, slicegpt, svd_llm, two_of_four, tyr
from disp_lab.parts.baseline import Baseline

ALL: dict[str, Baseline] = {
    baseline.name: baseline
    for baseline in (
        greedy.BASELINE,
        tyr.BASELINE,
        slicegpt.BASELINE,
        depth.BASELINE,
        svd_llm.BASELINE,
        joint_rank_k.BASELINE,
        mpo.BASELINE,
        two_of_four.MAGNITUDE,
        two_of_four.WANDA,
        two_of_four.SPARSEGPT,
        two_of_four.DASS,
    )
}
"""Baselines by name, in table order."""
