"""What makes `prune` read its settings: its method, and other settings."""

from typing import Any

from disp_llm.config.effect import Use
from disp_llm.config.methods import Reads, reads_of


def method_reads(config: Any) -> Reads:
    """What the method reads."""
    return reads_of(config.method)


def scores_read(config: Any) -> Reads:
    """What scoring reads: of the method, or of what learning begins at."""
    if config.method != "learned" or config.learn.start == "scores":
        return reads_of(config.method)
    if config.learn.start == "random":
        return Reads(calibration=False)
    return reads_of(config.learn.start)


READS = (
    Use(
        "steps minutes batch accumulate checkpoint_every compile",
        when=lambda config: method_reads(config).steps,
        what="is of learning, and the method {0.method} takes no steps",
        instead="use a `method` that does, such as learned",
    ),
    Use(
        "length",
        when=lambda config: method_reads(config).steps or config.text.may_be_written,
        what="is of learning and of text that the model writes, and there is none",
        instead="use a `method` that learns",
    ),
    Use(
        "gradient_checkpointing",
        when=lambda config: method_reads(config).gradients,
        what="is of a backward pass, and the method {0.method} takes none",
    ),
    Use(
        "learning_rate beta1 beta2 weight_decay weight_optimizer schedule warmup clip distill "
        "start fixed_masks whole_bonus parametrisation estimator shift temperature constrained "
        "penalty scale_rate adapter_rank adapter_rate weight_rate",
        when=lambda config: method_reads(config).learning,
        what="is of the method learned, and the method {0.method} does not read it",
        instead="leave `method` out",
    ),
    Use(
        "calibration_sequences calibration_length",
        when=lambda config: scores_read(config).calibration,
        what="is of a calibration, and nothing is scored on one",
    ),
    Use(
        "score_rounds",
        when=lambda config: scores_read(config).rounds,
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
