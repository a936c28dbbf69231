"""Plans and checks a run of `prune` before it does anything: the sites and the budget, what it
reads, and how its weights are divided, as asked for or by the first plan that fits. `doctor` lists
the plans."""

import logging
import math
import os
from dataclasses import dataclass, replace
from typing import Literal

from disp_llm.commands.api import Inputs
from disp_llm.commands.budgets import with_costs
from disp_llm.compact.experts_disp_llm import ALIGNED
from disp_llm.config.errors import InputError
from disp_llm.config.names import BRANCHES, COUPLED, EXPERTS, SITES, Site
from disp_llm.config.prune import PruneConfig
from disp_llm.config.targets import Target
from disp_llm.data.sources import Needs, held_out
from disp_llm.data.windows import Corpus
from disp_llm.masks.budget import Budget
from disp_llm.masks.layout import usual_chunk
from disp_llm.masks.prunable import PrunableModel, further_sites
from disp_llm.methods import method_named
from disp_llm.models.architectures import family_of
from disp_llm.models.devices import free_memory, resolve_dtype
from disp_llm.models.family import Family
from disp_llm.models.loading import Loaded, load_shapes
from disp_llm.models.sharding import Sharding
from disp_llm.models.windows import within_positions
from disp_llm.runs.job import Job
from disp_llm.training.memory import Memory, learning_memory
from disp_llm.training.problem import PruningProblem

logger = logging.getLogger(__name__)


def sites_of(config: PruneConfig, family: Family) -> tuple[Site, ...]:
    """Returns the sites to prune: those asked for, else those of the method (`Method.sites`) that
    the program of `for_` can run. A uniform model is cut only inside its MLPs. A latency or memory
    budget adds KV heads and whole branches, if architecture and method can do without them."""
    if config.sites:
        return config.sites
    method, demands = method_named(config.method), config.demands
    if demands.uniform:
        experts = family.experts and method.knows_experts and not config.draws_masks
        return ("mlp_mid", EXPERTS) if experts else ("mlp_mid",)
    usual = method.sites or (COUPLED if family.can_lose_heads else SITES)
    if config.budget.kind in ("latency", "memory"):
        more = further_sites(family, method.drops_branches)
        usual = tuple(dict.fromkeys((*(method.sites or SITES), *more)))
    return tuple(site for site in usual if site in demands.sites)


def shapes_of(config: PruneConfig) -> PrunableModel:
    """Returns the model on the meta device, with the sites to prune."""
    model, family = load_shapes(config.model)
    return PrunableModel(model, family, sites_of(config, family))


def problem_of(job: Job[PruneConfig], loaded: Loaded) -> PruningProblem:
    """Returns a model's problem with budget and alignment, without learning text."""
    config = job.config
    dense = PrunableModel.of(loaded, sites_of(config, loaded.family))
    sharded = loaded.sharding is not None
    require_possible(config, config.sizes, dense.layout.has_experts, sharded)
    align, alike = config.align or default_align(dense), config.demands.uniform
    align = math.lcm(align, config.demands.align)
    if alike:
        align = math.lcm(align, ALIGNED)  # what transformers' own function for experts asks for
    chunk = chunk_of(config, dense, align)
    budget = Budget(dense.layout, None, dense.sites, alike, config.least_cut, chunk)
    if config.budget.kind != "params":
        budget = with_costs(budget, job, dense, align, loaded.tokenizer)
    shares = tuple(map(budget.share_of, config.sizes))
    return PruningProblem(dense, Corpus(()), budget, shares, align, job)


def chunk_of(config: PruneConfig, dense: PrunableModel, align: int) -> int:
    """Returns how many neighbours in the residual stream stay together: as asked, else what pays.
    Chunks pay if adapters or weights are learned beside the masks. Without them, or with sampled
    masks, a model needs to choose dimension by dimension (docs/experiment-log.md).

    Raises:
        InputError: what was asked for does not divide the stream.
    """
    hidden = dense.layout.blocks[0].hidden
    if config.chunk and hidden % config.chunk:
        raise InputError(
            f"{config.chunk} does not divide the {hidden} dimensions of the residual stream",
            field="chunk",
            hint=f"ask for {math.gcd(config.chunk, hidden)}, or another divisor",
        )
    learn = config.learn
    adapts = config.method == "learned" and learn.estimator == "projected" and learn.adds_to_weights
    usual = usual_chunk(dense.layout, align) if adapts else 1
    return config.chunk or math.gcd(usual, hidden)


def windows_of(config: PruneConfig) -> dict[str, int]:
    """Returns the tokens of the windows that the method reads, by the setting that states them."""
    read: dict[str, int] = {}
    if config.reads.steps:
        read["length"] = config.training.length
    if config.reads_calibration:
        read["calibration_length"] = config.scores.calibration_length
    return read


def own_needs(config: PruneConfig, processes: int) -> Needs:
    """Returns how many synthetic tokens a run reads, if the model is to write them."""
    timed = config.reads.steps and config.learn.minutes > 0
    steps = 0 if timed else config.learn.steps
    learning = max(tokens_seen(config, steps, processes), *windows_of(config).values(), 0)
    seconds = WRITING * 60 * config.learn.minutes if timed else 0.0
    return Needs(learning, held_out(config.text, config.evaluation, learning), seconds)


def tokens_wanted(config: PruneConfig, processes: int) -> int:
    """Returns how many tokens are read of large texts: for every method at least as many as
    learning takes, so that the runs of a comparison read the same."""
    learns = replace(config, method=PruneConfig.method)
    return max(own_needs(one, processes).learning for one in (config, learns))


WRITING = 0.2
"""Share of `minutes` in which the model writes text."""


def require_possible(
    config: PruneConfig, sizes: tuple[Target, ...], experts: bool = False, sharded: bool = False
) -> None:
    """Refuses what the method cannot do with such a model; names the setting that asks for it."""
    method, budget = method_named(config.method), config.budget.kind
    missing = sorted(set(method.sites) - set(config.sites or method.sites))
    sized_by = "keep" if budget == "params" else "fit"
    refusals = (
        (method.every_site and missing, "sites", f"prunes {', '.join(missing)} too"),
        (
            not method.drops_branches and set(BRANCHES) & set(config.sites),
            "sites",
            "does not score whole branches",
        ),
        (method.one_size and len(sizes) > 1, sized_by, "chooses for one size at a time"),
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
    """Returns the tokens read to choose the masks: by the scores, and by all processes together."""
    calibration = config.scores.tokens if config.reads_calibration else 0
    learns = config.reads.steps
    learning = steps * config.training.tokens_per_step * processes if learns else 0
    return calibration + learning


def default_align(dense: PrunableModel) -> int:
    """Returns a multiple for widths that kernels like; a narrow CPU model has none to spare."""
    if dense.device.type != "cpu":
        return 64
    return 32 if dense.layout.blocks[0].hidden >= WIDE else 1


WIDE = 512
"""Stream width from which multiples of 32 cost next to nothing (docs/experiment-log.md)."""


def load_original(job: Job[PruneConfig], inputs: Inputs) -> tuple[Job[PruneConfig], Loaded]:
    """Loads the model as the settings say; returns it with a job that leaves none of these open."""
    progress = job.count("loading model")
    progress(0, 1)
    refuse_impossible(job, inputs)
    job = replace(job, config=_settled(job, inputs))
    config, process = job.config, job.process
    machine = replace(config.machine, device=str(process.device))
    if config.training.shard == "full":
        refuse_impossible(job, inputs)
        if config.rounds and process.is_main:
            logger.warning("models are not timed where processes divide the weights")
        loaded = Sharding.among(process).load(config.model, machine, dense_only=True)
    else:
        loaded = inputs.load(config.model, machine, dense_only=True)
    progress(1, 1)
    return job, loaded.as_recorded(job.run.result().get("source", {}))


def refuse_impossible(job: Job, inputs: Inputs) -> None:
    """Refuses to divide a model that lies in memory, or that one process holds alone. Also refuses
    to divide a model that learns from text and from examples with a loss of their own: the two take
    different numbers of passes, so processes would wait for each other."""
    text, given = job.config.text, inputs.texts.get("examples")
    if job.config.training.shard != "full":
        return
    if inputs.models:
        hint = "name a folder to have it divided"
        raise InputError("is in memory, as it is", field=next(iter(inputs.models)), hint=hint)
    if job.process.count == 1:
        hint = "start several by `torchrun --nproc-per-node N -m disp_llm …`, or leave it out"
        raise InputError("full, and there is one process", field="shard", hint=hint)
    own = given is not None and given.have_own_losses
    if own and (text.learns_from_text or "text" in inputs.texts):
        raise InputError(
            "examples with a loss of their own cannot be learned from beside text by processes "
            "that divide the model",
            field="shard",
            hint="give one of both, or a `shard` of no",
        )


def _settled(job: Job[PruneConfig], inputs: Inputs) -> PruneConfig:
    """Returns settings that fix how weights are divided and whether blocks run again in the
    backward pass: as asked for, else by the first plan that fits."""
    config, training = job.config, job.config.training
    if "auto" not in (training.shard, training.gradient_checkpointing):
        return config
    model = inputs.models.get("model")
    if model is not None:
        target = PrunableModel(model, family_of(model.config))
        dtype = model.dtype
    else:
        target = shapes_of(config)
        dtype = resolve_dtype(config.machine.dtype, job.process.device)
    config = within_positions(config, target.model.config, fewer_tokens=config.cuts_tokens)
    reads = method_named(config.method).reads_weights or config.budget.kind == "latency"
    stays_whole = model is not None or reads or config.learn.learns_weights
    stays_whole = stays_whole or config.cuts_tokens
    if stays_whole and training.shard == "auto":
        config = replace(config, training=replace(config.training, shard="no"))
    # On CPUs, processes of one machine share its memory; each GPU process has a device to itself.
    process, count = job.process, job.process.count
    in_node = int(os.environ.get("LOCAL_WORLD_SIZE", count)) if process.device.type == "cpu" else 1
    free = process.least(free_memory(process.device) / in_node)
    plans = memory_plans(target, config, count, dtype.itemsize)
    if model is not None:  # its weights are there already
        free += plans[0].memory.weights
    plan = first_plan(plans, free)
    if plan != plans[0] and process.is_main:
        needed, takes = (one.memory.total / 2**30 for one in (plans[0], plan))
        logger.warning("learning would take %.1f GiB; with %s it is %.1f", needed, plan.name, takes)
    chosen = {"shard": plan.shard, "gradient_checkpointing": plan.gradient_checkpointing}
    return replace(config, training=replace(config.training, **chosen))


ROOM = 0.9
"""Share of the free memory that plans may use: the counts are only that accurate."""


@dataclass(frozen=True)
class MemoryPlan:
    """Whether weights are divided and blocks run again, and the memory that learning then takes."""

    processes: int
    """Processes that divide the weights; 1 = each has all of them."""
    gradient_checkpointing: Literal["no", "yes"]
    memory: Memory
    """Memory in each process."""

    @property
    def shard(self) -> Literal["no", "full"]:
        """The `shard` setting of the plan."""
        return "full" if self.processes > 1 else "no"

    @property
    def name(self) -> str:
        """Flags that ask for the plan."""
        given = {"--shard": self.shard, "--gradient-checkpointing": self.gradient_checkpointing}
        asked = (f"{flag} {value}" for flag, value in given.items() if value != "no")
        return " ".join(asked) or "as it is"

    def fits(self, free: float) -> bool:
        """Returns whether the plan fits into `ROOM` of so many free bytes."""
        return self.memory.total <= ROOM * free


def memory_plans(
    target: PrunableModel, config: PruneConfig, processes: int, itemsize: int
) -> list[MemoryPlan]:
    """Returns the plans that the settings allow, the fastest first.

    Args:
        target: the model, which may have no weights.
        processes: their number, each on its own device.
        itemsize: bytes of a number of the model.
    """
    found: list[MemoryPlan] = []
    for count in dict.fromkeys((1, processes)):
        for choice in ("no", "yes"):
            training = replace(config.training, gradient_checkpointing=choice)
            memory = learning_memory(target, replace(config, training=training), count, itemsize)
            found.append(MemoryPlan(count, choice, memory))
    asked = config.training
    return [
        plan
        for plan in found
        if asked.shard in ("auto", plan.shard)
        and asked.gradient_checkpointing in ("auto", plan.gradient_checkpointing)
    ]


def first_plan(plans: list[MemoryPlan], free: float) -> MemoryPlan:
    """Returns the first plan that fits into so many bytes, or the last if none does."""
    return next((plan for plan in plans if plan.fits(free)), plans[-1])
