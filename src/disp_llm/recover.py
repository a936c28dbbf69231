"""After pruning: the weights that are left learn to make up for those that are gone.

A compact (or dense) folder and text -> a folder of the same contract. Blocks and norms are trained
whole, or through LoRA adapters that are merged at the end; embedding and head stay as they are, so
that no gradient of a vocabulary is ever held. The loss is cross-entropy, the divergence from the
original model (arXiv 1503.02531), or both.

Trained weights are float32 and compute in the model's own dtype.
"""

import contextlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from disp_llm.card import read_facts, write_recovered_card
from disp_llm.commands import RecoverCommand
from disp_llm.config import InputError, MachineConfig
from disp_llm.evaluate import perplexity
from disp_llm.export import Exported, count_block_parameters, write_folder
from disp_llm.families import Family
from disp_llm.learn import checkpointed_blocks, worth_compiling
from disp_llm.loop import Pace, generator_of, train
from disp_llm.losses import Teacher, head_of, token_losses
from disp_llm.mixture import Mixture
from disp_llm.models import Loaded, load, require_positions, start_process
from disp_llm.runs import (
    MetricsLog,
    Report,
    Run,
    clock,
    open_run,
    peak_memory_bytes,
    provenance,
    silent,
)
from disp_llm.text import Corpus, load_tokens, require_length


def recover(command: RecoverCommand, report: Report = silent) -> dict[str, Any]:
    """Trains what has not been trained yet; returns what `result.json` then holds.

    Raises:
        InputError: something the user can mend.
        Interrupted: a signal arrived while training; `resume` goes on.
    """
    run = Run(command.output_dir)
    if run.result().get("status") == "done":
        return run.result()
    accelerator, device = start_process(command.machine)
    main = accelerator.is_main_process
    with clock(run, "seconds", main):
        made = run_stages(command, run, accelerator, device, report if main else silent)
    if not main:
        return {}
    result = run.update(peak_memory_bytes=peak_memory_bytes(device))
    told = {
        "how": command.how,
        "distill": command.distill,
        "tokens_seen": result["tokens_seen"],
        "text": result["source"]["text"],
        "before": result["before"]["perplexity"],
        "command": result["command"],
    }
    write_recovered_card(Path(command.folder), made, result["model"], told)
    return run.update(status="done")


def run_stages(
    command: RecoverCommand,
    run: Run,
    accelerator: Accelerator,
    device: torch.device,
    report: Report,
) -> Path:
    """Everything between an empty folder and an exported model, as far as it is not there; returns
    where that lies."""
    machine = replace(command.machine, device=str(device))
    report("loading models and text", 0, 2, {})
    loaded = load(command.folder, machine)
    teacher = load_teacher(command, loaded, machine)
    report("loading models and text", 1, 2, {})
    corpus, eval_stream, sources = load_tokens(command.text, loaded.tokenizer, loaded.opening)
    report("loading models and text", 2, 2, {})
    corpus.require_length(command.length, "--length")
    require_positions(loaded.model, command.length, "--length")
    require_positions(loaded.model, min(command.evaluation.context, len(eval_stream)), "--context")
    require_length(eval_stream, 2, "--eval-text")

    def measure(model: PreTrainedModel, stage: str) -> dict[str, Any]:
        def on_window(done: int, total: int) -> None:
            report(stage, done, total, {})

        found = perplexity(model, loaded.family, eval_stream, command.evaluation, on_window)
        return asdict(found)

    if accelerator.is_main_process:
        open_run(command)
        if not run.result():
            run.update(
                status="running",
                run=str(run.folder),
                source=loaded.source | sources,
                before=measure(loaded.model, "perplexity before"),
                **provenance(command.machine.seed),
            )
            if teacher is not None:
                run.update(teacher=measure(teacher.model, "perplexity of the teacher"))
    accelerator.wait_for_everyone()
    adapted = adapters(loaded.model, command) if command.how == "lora" else None
    steps = train_weights(command, loaded, teacher, corpus, accelerator, report)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    folder = run.folder / "model"
    if not accelerator.is_main_process:
        return folder
    made = adapted.merge_and_unload() if adapted is not None else loaded.model
    made.requires_grad_(False)
    for parameter in made.parameters():
        parameter.data = parameter.data.to(loaded.dtype)
    exported = write_folder(made, loaded.tokenizer, folder, command.max_shard_size)
    sizes = _sizes(made, loaded.family, exported, read_facts(command.folder).get("dense", {}))
    run.update(
        model=measure(made, "perplexity after") | sizes | {"folder": str(folder)},
        tokens_seen=steps * tokens_of_step(command) * accelerator.num_processes,
    )
    return folder


def load_teacher(command: RecoverCommand, loaded: Loaded, machine: MachineConfig) -> Teacher | None:
    """The model that is named, or the original of an exported folder.

    Raises:
        InputError: there is neither, or its vocabulary is another one.
    """
    if not command.distill:
        return None
    name = command.teacher or read_facts(command.folder).get("source", {}).get("model")
    if not name:
        raise InputError(
            "is needed to distil, and the folder does not name its original",
            flag="--teacher",
            mend="name a model, or give --distill 0",
        )
    taught = load(name, machine)
    sizes = [model.get_input_embeddings().num_embeddings for model in (taught.model, loaded.model)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"{name} has {sizes[0]} tokens, the student {sizes[1]}",
            flag="--teacher",
            mend="name a model of the same vocabulary",
        )
    return Teacher(taught.model, head_of(taught.model, taught.family), command.distill)


def adapters(model: PreTrainedModel, command: RecoverCommand) -> Any:
    """Puts LoRA adapters (arXiv 2106.09685) on every linear layer of the blocks, in place.

    Raises:
        InputError: peft is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise InputError(
            "needs peft", flag="--how lora", mend="pip install 'disp-llm[recover]'"
        ) from error
    settings = peft.LoraConfig(
        r=command.rank, lora_alpha=2 * command.rank, target_modules="all-linear"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(command.machine.seed)
        return peft.get_peft_model(model, settings)


def train_weights(
    command: RecoverCommand,
    loaded: Loaded,
    teacher: Teacher | None,
    corpus: Corpus,
    accelerator: Accelerator,
    report: Report,
) -> int:
    """Trains in place, from the newest checkpoint on; returns the number of steps."""
    model, family = loaded.model, loaded.family
    trained = trained_parameters(model, family, command.how)
    optimizer = torch.optim.AdamW(
        trained, lr=command.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
    )
    head = head_of(model, family)
    device = next(model.parameters()).device
    per_step = tokens_of_step(command)
    steps = -(-command.tokens // (per_step * accelerator.num_processes))
    pace = Pace(steps, "cosine", command.checkpoint_every, per_step, round(0.05 * steps), clip=1.0)
    log = MetricsLog(command.output_dir / "metrics.jsonl")

    mixture = Mixture(corpus).to(device)
    with torch.no_grad(), computing_in(loaded.dtype, device):
        dense, its_head = (teacher.model, teacher.head) if teacher is not None else (model, head)
        mixture.measure_reference(
            lambda tokens: token_losses(dense, its_head, tokens.to(device)),
            command.length,
            generator_of(command.machine.seed, 4),
        )

    compiling = worth_compiling(steps, device)

    def backward(step: int) -> dict[str, Any]:
        own = generator_of(command.machine.seed, 5, step, accelerator.process_index)
        mixture.update(step)
        mean = 0.0
        for _ in range(command.accumulate):
            tokens, sources = mixture.draw(command.batch, command.length, own)
            with computing_in(loaded.dtype, device):
                losses = token_losses(model, head, tokens.to(device), teacher, compiling).mean(
                    -1
                )  # (B)
            mixture.saw(sources, losses, accelerator)
            (losses.mean() / command.accumulate).backward()
            mean += float(losses.detach().mean()) / command.accumulate
        return {"loss": mean} | mixture.figures()

    def on_step(metrics: dict[str, Any]) -> None:
        if accelerator.is_main_process:
            log.append(metrics)
            report("training", metrics["step"], steps, metrics)

    with (
        checkpointed_blocks(model, family, command.gradient_checkpointing),
        torch._dynamo.config.patch(suppress_errors=True),  # what cannot be compiled runs as it is
    ):
        folder = command.output_dir / "checkpoint"
        both = nn.ModuleDict({"model": model, "mixture": mixture})
        train(both, optimizer, backward, pace, folder, accelerator, on_step)
    return steps


def trained_parameters(model: PreTrainedModel, family: Family, how: str) -> list[nn.Parameter]:
    """Makes what is trained float32 and lets it have gradients: the adapters that are there, or
    everything but embeddings and head."""
    if how == "full":
        frozen = {
            id(parameter)
            for module in model.modules()
            if isinstance(module, nn.Embedding) or module is model.get_output_embeddings()
            for parameter in module.parameters()
        }
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) not in frozen)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    return trained


def computing_in(dtype: torch.dtype, device: torch.device) -> contextlib.AbstractContextManager:
    """Matrix products in the model's dtype, though the trained weights are float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def tokens_of_step(command: RecoverCommand) -> int:
    """Of one process."""
    return command.length * command.batch * command.accumulate


def _sizes(
    model: PreTrainedModel, family: Family, exported: Exported, dense: dict[str, Any]
) -> dict[str, Any]:
    """Of the result, and as shares of the original's (of its own, where it is no pruned model)."""
    blocks = count_block_parameters(model, family)
    return {
        "keep": blocks / dense.get("block_parameters", blocks),
        "keep_total": exported.parameters / dense.get("parameters", exported.parameters),
        "parameters": exported.parameters,
        "block_parameters": blocks,
        "bytes": exported.bytes,
    }
