"""What `prune` or `recover` would do: stages, tokens, memory and time, by configurations alone. No
weights are loaded and nothing is written."""

from pathlib import Path
from typing import Any

from disp_llm.commands.doctor import learning_operations, operations_per_second
from disp_llm.commands.memory_plans import ROOM, memory_plans
from disp_llm.commands.planning import own_needs, require_possible
from disp_llm.config.effect import usual_settings
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recover import RecoverConfig
from disp_llm.data.synthetic import held_out
from disp_llm.export.facts import original_of
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.devices import free_memory, resolve_device, resolve_dtype
from disp_llm.models.loading import empty_model, family_of_any, load_config, load_shapes
from disp_llm.models.windows import within_positions
from disp_llm.runs.settings import available
from disp_llm.training.memory import recovery_memory


def dry_run(config: PruneConfig | RecoverConfig) -> dict[str, Any]:
    """The stages of a command with the tokens that each reads (0 = all there are), and the memory
    of one process that trains. Of learning with `--steps` also a lower bound of its time.

    Raises:
        InputError: the command would refuse this.
    """
    available(config)
    device = resolve_device(config.machine.device)
    plan = _pruning(config) if isinstance(config, PruneConfig) else _recovery(config)
    free = free_memory(device)
    return plan | {
        "device": str(device),
        "memory_free_bytes": free,
        "fits": plan["memory_bytes"] <= ROOM * free,
        "output_dir": str(config.output_dir),
    }


def _pruning(asked: PruneConfig) -> dict[str, Any]:
    require_possible(asked, asked.sizes)
    empty = PrunableModel(*load_shapes(asked.model))
    config = within_positions(asked, usual_settings(asked), empty.model.config)
    device = resolve_device(config.machine.device)
    dtype = resolve_dtype(config.machine.dtype, device)
    reads, training, learn = config.reads, config.training, config.learn
    measured = config.evaluation.tokens
    stages = {"measure the original": measured}
    if config.text.may_be_written:
        needs = own_needs(config, 1)
        stages = {"write the model's own text": needs.learning + needs.held_out} | stages
    if config.reads_calibration:
        stages["score"] = config.scores.tokens
    if reads.steps:
        stages["learn"] = 0 if learn.minutes else learn.steps * training.tokens_per_step
    for size in config.sizes:
        stages[f"export and measure {config.budget.size_name(size)}"] = measured
    plans = memory_plans(empty, config, 1, dtype.itemsize)
    free = free_memory(device)
    open_plans = [one for one in plans if one.agrees(training)] or plans
    plan = next((one for one in open_plans if one.fits(free)), open_plans[-1])
    seconds = {}
    if reads.learning and not learn.minutes:
        tokens = training.length * training.batch
        rate = operations_per_second(empty, tokens, dtype, device)
        seconds["learning_s"] = round(learning_operations(empty, config, plan) / rate, 1)
    return {"stages": stages, "memory_bytes": plan.memory.total} | seconds


def _recovery(asked: RecoverConfig) -> dict[str, Any]:
    original = asked.teacher or original_of(Path(asked.model)) or asked.model
    names = [asked.model, *([original] if asked.training.distill else [])]
    shapes = [load_config(name) for name in names]
    config = within_positions(asked, RecoverConfig(asked.model), *shapes)
    models = [PrunableModel(empty_model(shape), family_of_any(shape)) for shape in shapes]
    dtype = resolve_dtype(config.machine.dtype, resolve_device(config.machine.device))
    learning = config.steps(1) * config.training.tokens_per_step
    measured = config.evaluation.tokens
    stages = {"measure before": measured, "train": learning, "measure after": measured}
    if config.text.may_be_written:
        written = learning + held_out(config.text, config.evaluation, learning)
        stages = {"write the original's own text": written} | stages
    return {
        "stages": stages,
        "memory_bytes": recovery_memory(models, config, 1, dtype.itemsize),
    }
