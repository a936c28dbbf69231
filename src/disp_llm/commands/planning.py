"""What a run of `prune` will do, settled and checked before it does anything."""

import math
from dataclasses import replace

from disp_llm.config.errors import InputError
from disp_llm.config.names import BRANCHES, EXPERTS, Site
from disp_llm.config.prune import PruneConfig
from disp_llm.config.targets import Target
from disp_llm.data.sources import Needs, held_out
from disp_llm.data.windows import Corpus
from disp_llm.masks.budget import Budget
from disp_llm.masks.layout import usual_chunk
from disp_llm.masks.prunable import PrunableModel, further_sites
from disp_llm.methods import method_named
from disp_llm.models.architectures import Family
from disp_llm.models.loading import Loaded
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
    sharded = loaded.sharding is not None
    require_possible(config, config.sizes, dense.layout.has_experts, sharded)
    align = config.export.align or default_align(dense)
    if config.uniform:
        from disp_llm.compact.experts_disp_llm import ALIGNED

        align = math.lcm(align, ALIGNED)  # what transformers' own function for experts asks for
    chunk = chunk_of(config, dense, align)
    budget = Budget(dense.layout, None, dense.sites, config.uniform, config.least_cut, chunk)
    if config.budget.budget != "params":
        from disp_llm.commands.budgets import with_costs

        budget = with_costs(budget, job, dense, align)
    shares = tuple(map(budget.share_of, config.sizes))
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


def require_possible(
    config: PruneConfig, sizes: tuple[Target, ...], experts: bool = False, sharded: bool = False
) -> None:
    """Refuses what the method cannot do with such a model, by the setting that asks for it."""
    method, budget = method_named(config.method), config.budget.budget
    missing = sorted(set(method.sites) - set(config.sites or method.sites))
    refusals = (
        (method.every_site and missing, "sites", f"prunes {', '.join(missing)} too"),
        (
            not method.drops_branches and set(BRANCHES) & set(config.sites),
            "sites",
            "does not score whole branches",
        ),
        (method.one_size and len(sizes) > 1, "keep", "chooses for one size at a time"),
        (method.one_size and budget != "params", "budget", "counts parameters"),
        (experts and not method.knows_experts, "method", "does not know mixtures of experts"),
        (sharded and method.reads_weights, "shard", "looks at all weights"),
        (sharded and budget == "latency", "shard", "times models, which takes all weights"),
    )
    for refused, field, why in refusals:
        if refused:
            hint = "change it, or use another method"
            raise InputError(f"the method {method.name} {why}", field=field, hint=hint)


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
