"""Trains the weights that pruning kept, with or without a teacher.

Trained weights are float32 and compute in the model's own dtype. Embedding and head stay frozen, so
no gradient of vocabulary size is ever held.
"""

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from disp_llm.config.recover import RecoverConfig
from disp_llm.data.randomness import shared_stream
from disp_llm.data.windows import Corpus
from disp_llm.masks.prunable import PrunableModel
from disp_llm.runs.job import Job
from disp_llm.training.adapters import step_scale
from disp_llm.training.blocks import checkpointed_blocks, compiles
from disp_llm.training.loop import RARER, Loss, Schedule, optimizers_of, train
from disp_llm.training.losses import Teacher, mean_losses
from disp_llm.training.rounding import rounded

CLIP = 1.0
"""Largest gradient norm."""
WARMUP = 0.05
"""Share of the steps over which the learning rate grows to its peak."""


def train_weights(
    job: Job[RecoverConfig],
    student: PrunableModel,
    teacher: Teacher | None,
    corpus: Corpus,
    dtype: torch.dtype,
    tokens_before: int = 0,
) -> int:
    """Trains in place, from the newest checkpoint on; returns the number of steps.

    Args:
        dtype: data type that the model computes in.
        tokens_before: tokens that these weights were trained on before with the same seed. Other
            windows are drawn now, whatever the earlier batch size.
    """
    config, device, process = job.config.training, student.device, job.process
    trained = trained_parameters(student)
    linears = {id(linear.weight) for linear in student.linears()}
    of_experts = {id(weight) for weight in student.weights_of_experts()}
    matrices = [one for one in trained if id(one) in linears]
    packed = [one for one in trained if id(one) in of_experts]
    others = [one for one in trained if id(one) not in linears | of_experts]
    # A foreach operation accepts no list in which some tensors are sharded.
    foreach = False if any(isinstance(one, DTensor) for one in trained) else None
    rate = config.learning_rate * step_scale(student)
    groups = [{"params": others}, {"params": packed, "lr": rate}]
    weights = {"params": matrices, "lr": rate}
    optimizers = optimizers_of(config, groups, weights, foreach)
    steps, seed = job.config.steps(process.count), job.config.machine.seed
    read = config.tokens_per_step * process.count
    compiled = compiles(config, steps, student)

    def loss_of(step: int) -> Loss:
        before_step(step)
        noise = shared_stream("weights", seed, tokens_before + step * read)
        windows = corpus.draw_own(config.batch, config.length, noise, process)
        # Matrix products run in the model's dtype, though the trained weights are float32.
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            losses = mean_losses(student, windows.to(device), teacher, compiled)  # (B)
        loss = losses.mean()
        return loss, {"loss": loss}

    state = nn.ModuleDict({"model": student.model})
    with (
        rounded(student, job.config.bits, dtype) as before_step,
        checkpointed_blocks(student, config.recomputes),
        torch._dynamo.config.patch(suppress_errors=True),  # what cannot be compiled runs as it is
    ):
        schedule = Schedule(config, steps, "training", RARER, CLIP, WARMUP)
        train(state, optimizers, loss_of, schedule, job)
    return steps


def trained_parameters(student: PrunableModel) -> list[nn.Parameter]:
    """Makes the trained parameters float32 with gradients and returns them: the language model
    without embeddings (the head lies outside it, unless the two are tied)."""
    model = student.model.requires_grad_(False)
    frozen = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding) or module is model.get_output_embeddings()
        for parameter in module.parameters()
    }
    language = student.language_model.parameters()
    trained = [parameter for parameter in language if id(parameter) not in frozen]
    for parameter in trained:
        parameter.requires_grad_(True)
        if parameter.dtype != torch.float32:  # in a sharded model they already are
            parameter.data = parameter.data.float()
    return trained
