"""Which methods of `prune` read which of its settings; those of other packages may read any."""

from typing import Any

from disp_llm.config.effect import Use
from disp_llm.config.learning import STARTS
from disp_llm.config.names import BY_GRADIENTS, IN_ROUNDS, STEPPING, STRUCTURES, UNREAD, own_methods
from disp_llm.config.words import OWN_WORDS


def is_any_of(config: Any, *names: str) -> bool:
    """Whether the method is one of these, or one of another package."""
    return config.method in names or config.method not in own_methods()


def scored_by(config: Any) -> str:
    """Whose scores masks follow from, or begin at."""
    begins = config.method == "learned" and config.learn.start != "scores"
    return config.learn.start if begins else config.method


def unlike_fisher() -> set[str]:
    """What scores at once."""
    return {*STARTS, *STRUCTURES, *own_methods()} - {"scores", *IN_ROUNDS}


READS = (
    OWN_WORDS,
    Use(
        "steps minutes batch accumulate checkpoint_every compile mix",
        when=lambda config: is_any_of(config, *STEPPING),
        what="is of learning, and the method {0.method} takes no steps",
        instead="use a `method` that does, such as learned",
    ),
    Use(
        "length",
        when=lambda config: is_any_of(config, *STEPPING) or config.text.may_be_written,
        what="is of learning and of own words, and there are none",
        instead="use a `method` that learns",
    ),
    Use(
        "gradient_checkpointing",
        when=lambda config: is_any_of(config, *STEPPING, *BY_GRADIENTS),
        what="is of a backward pass, and the method {0.method} takes none",
    ),
    Use(
        "learning_rate beta1 beta2 weight_decay weight_optimizer schedule warmup clip distill "
        "start fixed_masks whole_bonus parametrisation estimator shift temperature constrained "
        "penalty scale_rate adapter_rank adapter_rate weight_rate spare",
        when=lambda config: is_any_of(config, "learned"),
        what="is of the method learned, and the method {0.method} does not read it",
        instead="leave `method` out",
    ),
    Use(
        "calibration_sequences calibration_length",
        when=lambda config: scored_by(config) not in (*UNREAD, *STARTS),
        what="is of a calibration, and nothing is scored on one",
    ),
    Use(
        "score_rounds",
        when=lambda config: scored_by(config) not in unlike_fisher(),
        what="is of scores that are taken in rounds, and none are",
    ),
    Use(
        "weight_optimizer",
        when=lambda config: config.learn.learns_weights,
        what="steps weights, and none learn",
        instead="add `weight_rate`",
    ),
    Use(
        "learning_rate weight_decay",
        when=lambda config: not config.learn.fixed_masks,
        what="is of logits, and `fixed_masks` keeps them",
    ),
    Use(
        "compile",
        when=lambda config: not config.frozen.is_fetched or config.training.compile == "no",
        what="blocks are not compiled whose weights are fetched when they run",
        instead="leave out `offload` and `base_precision`",
    ),
    Use(
        "gradient_checkpointing",
        when=lambda config: not config.frozen.is_fetched or config.training.recomputes,
        what="blocks run again in any case whose weights are fetched when they run",
        instead="leave out `offload` and `base_precision`",
    ),
    Use(
        "curve_points",
        when=lambda config: config.keep_range,
        what="is of a `keep_range`, and there is none",
        instead="give `keep_range`",
    ),
)
"""What makes a run read its settings."""
