"""What a run of `prune` will do, settled and checked before it does anything."""

import math
from dataclasses import replace

import torch

from disp_llm.commands.budgets import budget_of, shares_of
from disp_llm.compact.experts_disp_llm import ALIGNED
from disp_llm.config.errors import InputError
from disp_llm.config.names import BRANCHES, EXPERTS, Site
from disp_llm.config.prune import PruneConfig
from disp_llm.config.targets import Target
from disp_llm.data.sources import Needs, held_out
from disp_llm.data.tokens import Corpus, Texts
from disp_llm.masks.budget import project
from disp_llm.masks.layout import usual_chunk
from disp_llm.masks.prunable import PrunableModel, further_sites
from disp_llm.methods import all_methods, method_named
from disp_llm.models.architectures import Family
from disp_llm.models.loading import Loaded
from disp_llm.models.windows import require_positions
from disp_llm.runs.job import Job
from disp_llm.training.problem import PruningProblem


def sites_of(config: PruneConfig, family: Family) -> tuple[Site, ...]:
    """Where entries may be pruned: as asked, or where the method prunes them and, where time or
    memory is the budget, at whatever else makes a model cheaper, if the architecture and the method
    can do without: KV heads and whole branches."""
    method = method_named(config.method)
    if config.uniform and not config.sites:
        experts = family.experts and method.knows_experts and not config.draws_masks
        return ("mlp_mid", EXPERTS) if experts else ("mlp_mid",)
    more: tuple[Site, ...] = ()
    if config.budget.budget in ("latency", "memory"):
        more = further_sites(family, method.drops_branches)
    return config.sites or tuple(dict.fromkeys((*method.sites, *more)))


def problem_of(job: Job[PruneConfig], loaded: Loaded) -> PruningProblem:
    """A model with its budget and alignment, and no learning text."""
    config = job.config
    dense = PrunableModel.of(loaded, sites_of(config, loaded.family))
    align = config.export.align or default_align(dense)
    if config.uniform:
        align = math.lcm(align, ALIGNED)  # what transformers' own function for experts asks for
    budget = budget_of(job, dense, align, chunk_of(config, dense, align))
    shares = shares_of(config.sizes, budget, align)
    return PruningProblem(dense, Corpus(()), budget, shares, align, job)


def chunk_of(config: PruneConfig, dense: PrunableModel, align: int) -> int:
    """How many neighbours in the residual stream stay together: as asked, as far as it divides the
    stream, or what pays. It pays where adapters or weights learn beside the masks: without them a
    model needs to choose dimension by dimension (docs/experiment-log.md), and sampled masks
    are drawn so."""
    learn = config.learn
    adapts = config.method == "learned" and learn.estimator == "projected" and learn.adds_to_weights
    usual = usual_chunk(dense.layout, align) if adapts else 1
    return math.gcd(config.chunk or usual, dense.layout.blocks[0].hidden)


def refuse_impossible(problem: PruningProblem) -> None:
    """Refuses, before any work and before a folder exists, a size below the smallest model and
    windows that are longer than what the model can read."""
    config, budget, model = problem.job.config, problem.budget, problem.dense.model
    require_possible(config, config.sizes)
    require_known_blocks(problem)
    for share in problem.keeps:
        project(torch.zeros(budget.layout.entries), budget, share, problem.align)
    for field, tokens in windows_of(config).items():
        require_positions(model, tokens, field)


def require_known_blocks(problem: PruningProblem) -> None:
    """Refuses a mixture of experts for a method that knows dense MLPs only.

    Raises:
        InputError: naming those that know it.
    """
    method = method_named(problem.job.config.method)
    if problem.budget.layout.has_experts and not method.knows_experts:
        known = [other.name for other in all_methods().values() if other.knows_experts]
        raise InputError(
            f"the method {method.name} does not know mixtures of experts",
            field="method",
            hint=f"use one of {', '.join(known)}",
        )


def require_unread(config: PruneConfig) -> None:
    """Refuses what needs all weights in one process.

    Raises:
        InputError: the method looks at weights, or time is the budget.
    """
    method = method_named(config.method)
    if method.reads_weights:
        raise InputError(
            f"{method.name} looks at weights, which do not all lie in this process",
            field="method",
            hint="use learned, or leave `shard` out",
        )
    if config.budget.budget == "latency":
        raise InputError(
            "times whole models, and not all weights lie in this process",
            field="budget",
            hint="leave `shard` out",
        )


def refuse_short_text(problem: PruningProblem, texts: Texts) -> None:
    """Refuses text that is shorter than a window, and an evaluation window that is longer than what
    the model can read."""
    config = problem.job.config
    window = texts.longest_window(config.evaluation)
    require_positions(problem.dense.model, window, "context")
    for field, tokens in windows_of(config).items():
        texts.corpus.require_length(tokens, field)


def windows_of(config: PruneConfig) -> dict[str, int]:
    """Tokens of the windows that the method reads, by the setting that says so."""
    read: dict[str, int] = {}
    if config.reads.steps:
        read["length"] = config.training.length
    if config.reads_calibration:
        read["calibration_length"] = config.scores.calibration_length
    return read


def own_needs(config: PruneConfig, processes: int) -> Needs:
    """How many of its own tokens a run reads, if the model is to write them."""
    timed = config.reads.steps and config.learn.minutes > 0
    steps = 0 if timed else config.learn.steps
    learning = max(tokens_seen(config, steps, processes), *windows_of(config).values(), 0)
    seconds = WRITING * 60 * config.learn.minutes if timed else 0.0
    return Needs(learning, held_out(config.text, config.evaluation, learning), seconds)


def tokens_wanted(config: PruneConfig, processes: int) -> int:
    """How many tokens large texts are read for: of every method no fewer than learning takes, so
    that the runs of a comparison read the same."""
    learns = replace(config, method=PruneConfig.method)
    return max(own_needs(one, processes).learning for one in (config, learns))


WRITING = 0.2
"""Share of `minutes` in which the model writes text."""


def require_possible(config: PruneConfig, sizes: tuple[Target, ...]) -> None:
    """Refuses what the method cannot give.

    Raises:
        InputError: too few sites or whole branches; of a method that chooses for one size, several
            sizes or another budget than parameters.
    """
    method = method_named(config.method)
    missing = set(method.sites) - set(config.sites or method.sites)
    if method.every_site and missing:
        raise InputError(
            f"the method {method.name} prunes {', '.join(sorted(missing))} too",
            field="sites",
            hint="leave it out",
        )
    if set(BRANCHES) & set(config.sites) and not method.drops_branches:
        raise InputError(
            f"the method {method.name} does not score whole branches",
            field="sites",
            hint=f"leave {' and '.join(BRANCHES)} out",
        )
    if method.one_size and len(sizes) > 1:
        raise InputError(
            f"the method {method.name} chooses for one size at a time",
            field="keep",
            hint="give one, and a run for each",
        )
    if method.one_size and config.budget.budget != "params":
        raise InputError(
            f"the method {method.name} counts parameters", field="budget", hint="give `keep`"
        )


def tokens_seen(config: PruneConfig, steps: int, processes: int) -> int:
    """Tokens that were read to choose the masks: those of the scores, and every process's own."""
    calibration = config.scores.tokens if config.reads_calibration else 0
    learns = config.reads.steps
    learning = steps * config.training.tokens_per_step * processes if learns else 0
    return calibration + learning


def default_align(dense: PrunableModel) -> int:
    """Widths that kernels like; a narrow model on a CPU has none to spare."""
    if dense.device.type != "cpu":
        return 64
    return 32 if dense.layout.blocks[0].hidden >= WIDE else 1


WIDE = 512
"""Residual stream from which multiples of 32 cost next to nothing (docs/experiment-log.md)."""
