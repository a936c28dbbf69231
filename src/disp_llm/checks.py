"""What no command can use, refused before anything is loaded: one line that names the flag."""

import re

from disp_llm.commands import BenchCommand, CompareCommand, RecoverCommand
from disp_llm.config import (
    HEADS,
    SITES,
    BudgetConfig,
    EvalConfig,
    InputError,
    PruneConfig,
    ScoreConfig,
    TextConfig,
    nearest,
)


def check_prune(config: PruneConfig) -> None:
    """Refuses values that no run can use, before anything is loaded.

    Raises:
        InputError: naming the flag.
    """
    check_shares(config.keep, config.budget)
    check_range(config)
    if len(set(config.sites)) < len(config.sites):
        raise InputError("repeated", flag="--sites", mend="give each site once")
    known = (*SITES, HEADS)
    for site in set(config.sites) - set(known):
        raise InputError(
            f"no site '{site}'{nearest(site, list(known))}", flag="--sites", mend=f"use {known}"
        )
    positive = {
        "--length": config.learn.length - 1,
        "--batch": config.learn.batch,
        "--accumulate": config.learn.accumulate,
        "--checkpoint-every": config.learn.checkpoint_every,
        "--temperature": config.learn.temperature,
        "--learning-rate": config.learn.learning_rate,
    }
    _positive(positive)
    check_distill(config.learn.distill)
    check_optimizer(config)
    _not_negative({"--steps": config.learn.steps, "--align": config.export.align})
    check_scores(config.scores)
    check_shard_size(config.export.max_shard_size)
    check_text(config.text)
    check_evaluation(config.evaluation)


def check_optimizer(config: PruneConfig) -> None:
    """Refuses what AdamW cannot use, and sampled masks that nothing holds to a size.

    Raises:
        InputError: naming the flag.
    """
    learn = config.learn
    for flag, value in (("--beta1", learn.beta1), ("--beta2", learn.beta2)):
        if not 0 <= value < 1:
            raise InputError(f"{value}", flag=flag, mend="give a number in [0, 1)")
    _not_negative(
        {
            "--scale-rate": learn.scale_rate,
            "--weight-decay": learn.weight_decay,
            "--penalty": learn.penalty,
        }
    )
    if config.method == "learned" and learn.estimator != "projected" and not learn.penalty:
        raise InputError(
            f"{learn.estimator} draws masks that nothing holds to a size",
            flag="--penalty",
            mend="give one (the paper: 6), or use --estimator projected",
        )


def check_shard_size(size: str) -> None:
    """Refuses what is no size of a file.

    Raises:
        InputError: naming the flag.
    """
    if not re.fullmatch(r"\d+(\.\d+)?\s*[KMGT]B", size, re.IGNORECASE):
        raise InputError(f"{size}", flag="--max-shard-size", mend="give a size such as 5GB")


def check_scores(config: ScoreConfig) -> None:
    """Refuses a calibration without tokens.

    Raises:
        InputError: naming the flag.
    """
    _at_least(1, "--calibration-sequences", config.calibration_sequences)
    _at_least(2, "--calibration-length", config.calibration_length)
    _at_least(0, "--score-rounds", config.score_rounds)


def check_distill(share: float) -> None:
    """Refuses what is no share.

    Raises:
        InputError: naming the flag.
    """
    if not 0 <= share <= 1:
        raise InputError(f"{share}", flag="--distill", mend="give a number from 0 to 1")


def check_text(config: TextConfig) -> None:
    """Refuses text that is named twice.

    Raises:
        InputError: naming the flag.
    """
    if config.weights and (len(config.weights) != len(config.text) or min(config.weights) <= 0):
        raise InputError(
            f"{len(config.weights)} for {len(config.text)} files",
            flag="--weights",
            mend="give one number above 0 for each file of --text",
        )
    if config.mix == "dynamic" and len(config.weights) < 2:
        raise InputError("has nothing to mix", flag="--mix", mend="give several --weights")
    if config.text and config.dataset:
        raise InputError("given together with --text", flag="--dataset", mend="choose one of them")
    if config.eval_text and config.eval_dataset:
        raise InputError(
            "given together with --eval-text", flag="--eval-dataset", mend="choose one of them"
        )


def check_range(config: PruneConfig) -> None:
    """Refuses a range that is none, or one of something else than block parameters.

    Raises:
        InputError: naming the flag.
    """
    if not config.keep_range:
        return
    flag, mend = "--keep-range", "give LOW HIGH, such as 0.4 0.9"
    check_keep(config.keep_range, flag)
    if len(config.keep_range) != 2 or config.keep_range[0] > config.keep_range[1]:
        raise InputError(f"{config.keep_range} is not a range", flag=flag, mend=mend)
    if config.budget.budget != "params":
        raise InputError("counts block parameters", flag=flag, mend="leave --budget out")
    if config.curve_points < 2:
        raise InputError("too small", flag="--curve-points", mend="give 2 or more")


def check_recover(config: RecoverCommand) -> None:
    """Refuses values that no recovery can use, before anything is loaded.

    Raises:
        InputError: naming the flag.
    """
    positive = {
        "--tokens": config.tokens,
        "--length": config.length - 1,
        "--batch": config.batch,
        "--accumulate": config.accumulate,
        "--rank": config.rank,
        "--checkpoint-every": config.checkpoint_every,
        "--learning-rate": config.learning_rate,
    }
    _positive(positive)
    check_distill(config.distill)
    check_shard_size(config.max_shard_size)
    check_text(config.text)
    check_evaluation(config.evaluation)


def check_bench(config: BenchCommand) -> None:
    """Refuses work that cannot be timed.

    Raises:
        InputError: naming the flag.
    """
    _at_least(1, "--lengths", *config.lengths)
    _at_least(1, "--batches", *config.batches)
    _at_least(1, "--context", config.context)
    _at_least(2, "--rounds", config.rounds)
    if config.plot is not None and config.plot.suffix not in (".png", ".svg"):
        raise InputError(f"{config.plot}", flag="--plot", mend="name a .png or .svg file")


def check_shares(keep: tuple[float, ...], budget: BudgetConfig) -> None:
    """Refuses a budget without its sizes, or sizes of another budget.

    Raises:
        InputError: naming --keep or --target.
    """
    if budget.budget == "params":
        if budget.target:
            raise InputError(
                "belongs to --budget flops, bytes or latency",
                flag="--target",
                mend="add that, or give --keep",
            )
        check_keep(keep)
    else:
        check_keep(budget.target, "--target")
    if budget.workload_length < 1:
        raise InputError("too small", flag="--workload-length", mend="give a larger number")


def check_keep(keeps: tuple[float, ...], flag: str = "--keep") -> None:
    """Refuses a share outside (0, 1], NaN, a repeated one, or none at all."""
    for keep in keeps:
        if not 0 < keep <= 1:
            raise InputError(f"{keep} is not a share", flag=flag, mend="give a number in (0, 1]")
    if not keeps or len(set(keeps)) < len(keeps):
        raise InputError("empty or repeated", flag=flag, mend="give each size once")


def check_evaluation(config: EvalConfig) -> None:
    """Refuses windows that score nothing or skip tokens."""
    if config.context < 2:
        raise InputError(f"{config.context}", flag="--context", mend="give 2 or more tokens")
    if not 0 <= config.stride < config.context + 1:
        raise InputError(f"{config.stride}", flag="--stride", mend="give 0 to --context tokens")
    if config.windows < 0:
        raise InputError(f"{config.windows}", flag="--windows", mend="give 0 (all) or more")


def check_compare(config: CompareCommand) -> None:
    """Refuses what no comparison can use.

    Raises:
        InputError: naming the flag.
    """
    check_keep(config.keep)
    _not_negative({"--steps": config.steps, "--rounds": config.rounds})
    _at_least(2, "--length", config.length)
    check_scores(config.scores)
    check_text(config.text)
    check_evaluation(config.evaluation)


def _positive(values: dict[str, float]) -> None:
    """Values by flag; NaN is refused too, here and below."""
    for flag, value in values.items():
        if not value > 0:
            raise InputError("too small", flag=flag, mend="give a larger number")


def _not_negative(values: dict[str, float]) -> None:
    for flag, value in values.items():
        if not value >= 0:
            raise InputError(f"{value} is negative", flag=flag, mend="give 0 or more")


def _at_least(least: int, flag: str, *values: int) -> None:
    """All that one flag was given, which must be something."""
    if not values or min(values) < least:
        raise InputError("too small", flag=flag, mend=f"give {least} or more")
