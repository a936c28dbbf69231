"""Variants of the method `learned`, each with rows of its own in a comparison."""

from collections.abc import Callable
from dataclasses import replace

from disp_lab.names import BASELINES, IN_TIME, mask_methods
from disp_llm.config.parts import BudgetConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recipes import apply_recipe, load_recipe

FROZEN = {"adapter_rank": 0, "weight_rate": 0.0}


def masks_only(config: PruneConfig) -> PruneConfig:
    """Ours without anything beside them: every weight that is kept is the original's."""
    return apply_recipe(config, {"learn": {"scale_rate": 0.0} | FROZEN})


def masks_and_scales(config: PruneConfig) -> PruneConfig:
    """Ours without adapters and with frozen weights."""
    return apply_recipe(config, {"learn": FROZEN})


def domain(config: PruneConfig) -> PruneConfig:
    """Masks and scales that the text itself teaches, not the original: best on such text."""
    return apply_recipe(config, load_recipe("domain"))


def disp(config: PruneConfig) -> PruneConfig:
    """The paper's structure with our learning: each block reads and writes its own subset of the
    residual stream, and heads stay whole."""
    return apply_recipe(config, load_recipe("disp"))


def in_time(config: PruneConfig) -> PruneConfig:
    """Ours where time is the budget: dimensions, KV heads and whole branches compete by what they
    take of a prompt on this machine."""
    return replace(config, budget=BudgetConfig("latency", fit=(1.0,)))


def paper(config: PruneConfig) -> PruneConfig:
    """The paper's recipe over our windows; its step size is for 10,000 steps, ten times it for a
    few hundred (docs/experiment-log.md)."""
    faster = {"training": {"learning_rate": 1e-2}}
    return apply_recipe(apply_recipe(config, load_recipe("paper")), faster)


def policy_gradient(config: PruneConfig) -> PruneConfig:
    """Gao et al., Optimization-based Structural Pruning for LLMs without Back-Propagation (arXiv
    2406.10576): Bernoulli masks, learned by policy gradient from forward passes alone; they start
    at our scores."""
    learn = {"estimator": "policy_gradient", "temperature": 1.0, "penalty": 6.0}
    return apply_recipe(config, {"learn": learn, "training": {"distill": 0.0}})


VARIANTS: dict[str, Callable[[PruneConfig], PruneConfig]] = {
    "masks_only": masks_only,
    "masks_and_scales": masks_and_scales,
    "domain": domain,
    "disp": disp,
    IN_TIME: in_time,
    "paper": paper,
    "policy_gradient": policy_gradient,
}

ONE_SIZE = ("paper", "policy_gradient")
"""Variants that need one run per size, as in their papers."""


def compared_methods() -> tuple[str, ...]:
    """Returns all methods that `compare` knows, in table order."""
    return (*mask_methods(), *VARIANTS, *BASELINES)
