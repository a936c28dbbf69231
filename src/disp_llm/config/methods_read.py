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
    return Reads(calibration=False)


READS = (
    Use(
        "steps minutes batch accumulate compile",
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
        "learning_rate betas weight_decay weight_optimizer schedule warmup distill "
        "start parametrisation estimator shift temperature "
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
        "weight_optimizer",
        when=lambda config: config.learn.learns_weights,
        what="steps weights, and none learn",
        instead="add `weight_rate`",
    ),
)
