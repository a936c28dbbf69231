"""The loop: it learns, resumes bit for bit, holds the budget, and means the same on two
processes."""

import dataclasses
import math
import os
import signal
import threading

import pytest
import torch
from accelerate import Accelerator
from conftest import byte_tokenizer, tiny_model

from disp_llm.budget import Budget, project
from disp_llm.config import InputError, LearnConfig
from disp_llm.families import family_of
from disp_llm.learn import Task, learn
from disp_llm.loop import Interrupted, checkpoints, generator_of
from disp_llm.losses import CHUNK, Teacher, head_of, token_losses
from disp_llm.masks import Choice, layout_of, masked
from disp_llm.text import Corpus, tokenize

CONFIG = LearnConfig(steps=8, length=24, checkpoint_every=3)


@pytest.fixture
def task(text_file) -> Task:
    model = tiny_model("llama")
    family = family_of(model.config)
    stream = tokenize([text_file.read_text()], byte_tokenizer())
    budget = Budget(layout_of(model, family))
    return Task(model, family, Corpus((stream,)), budget, (0.6,), align=1, seed=0)


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def start_of(task: Task) -> torch.Tensor:
    return torch.randn(task.budget.layout.entries, generator=generator_of(7))


class Killed(Exception):
    """Stands for a kill -9 between two steps."""


@pytest.mark.parametrize("parametrisation", ["logits", "hypernetwork"])
@pytest.mark.parametrize("estimator", ["projected", "reinmax"])
def test_resumed_equals_uninterrupted(task, accelerator, tmp_path, parametrisation, estimator):
    config = dataclasses.replace(CONFIG, parametrisation=parametrisation, estimator=estimator)
    whole = learn(task, start_of(task), config, tmp_path / "whole", accelerator)

    def kill(metrics: dict) -> None:
        if metrics["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        learn(task, start_of(task), config, tmp_path / "cut", accelerator, kill)
    steps = []
    resumed = learn(
        task,
        start_of(task),
        config,
        tmp_path / "cut",
        accelerator,
        lambda m: steps.append(m["step"]),
    )
    assert steps == [4, 5, 6, 7, 8]  # from the checkpoint of step 3
    assert torch.equal(resumed.logits, whole.logits)
    assert torch.equal(resumed.scales, whole.scales)
    assert not torch.equal(whole.logits, start_of(task))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_a_checkpoint_and_stops(task, accelerator, tmp_path, number):
    def interrupt(metrics: dict) -> None:
        if metrics["step"] == 4:
            os.kill(os.getpid(), number)

    handlers = signal.getsignal(number)
    with pytest.raises(Interrupted):
        learn(task, start_of(task), CONFIG, tmp_path, accelerator, interrupt)
    assert checkpoints(tmp_path)[-1].name == "step-0000005.safetensors"
    assert signal.getsignal(number) is handlers
    assert threading.active_count() >= 1


def test_a_truncated_checkpoint_is_named_and_the_one_before_it_serves(task, accelerator, tmp_path):
    learn(task, start_of(task), CONFIG, tmp_path, accelerator)
    newest = checkpoints(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.raises(InputError, match=str(newest)) as raised:
        learn(task, start_of(task), CONFIG, tmp_path, accelerator)
    assert "delete this file" in str(raised.value)
    newest.unlink()
    steps = []
    learn(task, start_of(task), CONFIG, tmp_path, accelerator, lambda m: steps.append(m["step"]))
    assert steps == [7, 8]


def test_the_budget_is_met_at_every_step(task, accelerator, tmp_path):
    seen = []
    learn(task, start_of(task), CONFIG, tmp_path, accelerator, seen.append)
    assert [metrics["step"] for metrics in seen] == list(range(1, 9))
    largest = float(task.budget.entry_costs.max()) / task.budget.full
    assert all(0.6 - largest < metrics["keep"] <= 0.6 for metrics in seen)


def test_several_sizes_draw_a_keep_between_them(task, accelerator, tmp_path):
    several = dataclasses.replace(task, keeps=(0.8, 0.4))
    seen = []
    learn(several, start_of(task), CONFIG, tmp_path, accelerator, seen.append)
    asked = [metrics["keep_asked"] for metrics in seen]
    assert len(set(asked)) == 8
    assert all(0.4 <= keep <= 0.8 for keep in asked)


def test_penalty_brings_the_size_down(task, accelerator, tmp_path):
    """The paper's objective: from about 0.92 of the parameters towards the asked share."""
    config = LearnConfig(
        steps=60, length=24, start="random", parametrisation="hypernetwork", estimator="reinmax",
        shift=3.0, temperature=1.0, penalty=6.0, learning_rate=1e-2, beta2=0.999,
        schedule="constant",
    )  # fmt: skip
    seen = []
    learn(task, torch.zeros(task.budget.layout.entries), config, tmp_path, accelerator, seen.append)
    assert seen[0]["keep"] > 0.85
    assert abs(seen[-1]["keep"] - 0.6) < 0.08


def test_learning_lowers_the_loss_of_the_exact_masks(task, accelerator, tmp_path):
    head = head_of(task.model, task.family)
    tokens = task.corpus.streams[0][: 20 * 64].view(20, 64)

    def loss(choice: Choice) -> float:
        kept = project(choice.logits, task.budget, 0.6).kept.float()
        with masked(task.model, task.family, task.budget.layout) as masking, torch.no_grad():
            masking.set(kept if choice.scales is None else kept * choice.scales)
            return float(token_losses(task.model, head, tokens).mean())

    config = LearnConfig(steps=60, length=64, scale_rate=0.0)
    learned = learn(task, start_of(task), config, tmp_path / "masks", accelerator)
    assert learned.scales is None
    assert loss(learned) < loss(Choice(start_of(task))) - 0.1
    config = LearnConfig(steps=60, length=64)
    scaled = learn(task, start_of(task), config, tmp_path / "scales", accelerator)
    assert loss(scaled) < loss(learned)


def test_gradient_checkpointing_changes_nothing_but_memory(task, accelerator, tmp_path):
    plain = learn(task, start_of(task), CONFIG, tmp_path / "a", accelerator)
    config = dataclasses.replace(CONFIG, gradient_checkpointing=True)
    again = learn(task, start_of(task), config, tmp_path / "b", accelerator)
    assert torch.equal(plain.logits, again.logits)
    assert "forward" not in vars(task.model.model.layers[0])


def test_accumulated_batches_average(task, accelerator, tmp_path):
    seen = []
    config = dataclasses.replace(CONFIG, accumulate=3, batch=2, steps=2)
    learn(task, start_of(task), config, tmp_path, accelerator, seen.append)
    assert seen[-1]["tokens"] == 2 * 3 * 2 * 24


def test_a_loss_that_is_no_number_stops_before_anything_is_spoilt(task, accelerator, tmp_path):
    with pytest.raises(InputError, match="loss of nan") as raised:
        learn(task, start_of(task) * math.nan, CONFIG, tmp_path, accelerator)
    assert raised.value.flag == "--learning-rate"
    assert not checkpoints(tmp_path)


def test_text_shorter_than_a_window_names_the_flag(task, accelerator, tmp_path):
    short = dataclasses.replace(task, corpus=Corpus((task.corpus.streams[0][:10],)))
    with pytest.raises(InputError, match="--length"):
        learn(short, start_of(task), CONFIG, tmp_path, accelerator)


def test_chunked_loss_and_gradient_equal_the_plain_ones():
    """More tokens than one chunk holds, and a different weight for every token's loss."""
    model = tiny_model("llama", max_position_embeddings=2 * CHUNK)
    family = family_of(model.config)
    tokens = torch.randint(4, 320, (2, CHUNK + 30), generator=generator_of(1))
    weights = torch.rand(2, CHUNK + 29, generator=generator_of(2))
    layout = layout_of(model, family)
    gradients = []
    for chunked in (True, False):
        mask = torch.ones(layout.entries, requires_grad=True)
        with masked(model, family, layout) as masking:
            masking.set(mask)
            if chunked:
                losses = token_losses(model, head_of(model, family), tokens)
            else:
                logits = model(tokens).logits[:, :-1].transpose(1, 2)
                losses = torch.nn.functional.cross_entropy(logits, tokens[:, 1:], reduction="none")
            (losses * weights).sum().backward()
        gradients.append((losses.detach(), mask.grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_the_original_teaches_without_its_masks(task):
    """The divergence from the dense model, whatever masks are set, and a gradient for these."""
    windows = torch.arange(40).view(2, 20)
    head = head_of(task.model, task.family)
    with torch.no_grad():
        dense = task.model(windows).logits[:, :-1].log_softmax(-1)
    mask = torch.rand(task.budget.layout.entries, requires_grad=True)
    with masked(task.model, task.family, task.budget.layout) as masking:
        masking.set(mask)
        teacher = Teacher(task.model, head, 1.0, masking.lifted)
        losses = token_losses(task.model, head, windows, teacher)
        given = task.model(windows).logits[:, :-1].log_softmax(-1)
    wanted = (dense.exp() * (dense - given)).sum(-1)
    torch.testing.assert_close(losses, wanted, rtol=1e-4, atol=1e-5)
    ours, plain = (
        torch.autograd.grad(part.mean(), mask, retain_graph=True)[0] for part in (losses, wanted)
    )
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-6)


def test_learning_from_the_original_brings_the_divergence_down(task, accelerator, tmp_path):
    seen = []
    config = dataclasses.replace(CONFIG, steps=40, distill=1.0)
    learn(task, start_of(task), config, tmp_path, accelerator, lambda m: seen.append(m["loss"]))
    assert sum(seen[-8:]) < 0.8 * sum(seen[:8])


def test_generators_differ_in_every_number_and_in_their_order():
    draws = {
        float(torch.rand((), generator=generator_of(*numbers)))
        for numbers in [(0, 1), (1, 0), (0, 1, 0), (0, 2), (0,), (1,)]
    }
    assert len(draws) == 6


def test_policy_gradient_needs_no_gradient_through_the_model(task, accelerator, tmp_path):
    """Forward passes only: what is trained moves, the model is never differentiated, and the
    moving baseline survives a kill."""
    config = LearnConfig(
        steps=8, length=24, checkpoint_every=3, start="random", estimator="policy_gradient",
        shift=3.0, penalty=6.0,
    )  # fmt: skip
    start = torch.zeros(task.budget.layout.entries)

    def watch(module, args, output) -> None:
        assert not output.last_hidden_state.requires_grad

    handle = task.model.model.register_forward_hook(watch)
    whole = learn(task, start, config, tmp_path / "whole", accelerator)

    def kill(metrics: dict) -> None:
        if metrics["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        learn(task, start, config, tmp_path / "cut", accelerator, kill)
    resumed = learn(task, start, config, tmp_path / "cut", accelerator)
    assert torch.equal(resumed.logits, whole.logits)
    handle.remove()
    assert whole.scales is None
    assert not torch.equal(whole.logits, start)
    assert not torch.equal(whole.logits, whole.logits[0].expand_as(whole.logits))


@pytest.mark.timeout(300)
def test_compiled_blocks_learn_the_same(task, accelerator, tmp_path):
    """And leave the model as it was. One translation serves all blocks."""
    figures: dict[str, list[float]] = {}
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for compiled in ("no", "yes"):
        config = dataclasses.replace(CONFIG, compile=compiled, learning_rate=1e-3)
        losses = figures.setdefault(compiled, [])
        learn(
            task,
            start_of(task),
            config,
            tmp_path / compiled,
            accelerator,
            lambda metrics, losses=losses: losses.append(metrics["loss"]),
        )
    assert figures["yes"] == pytest.approx(figures["no"], rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3  # not one a block
    assert not any("forward" in vars(module) for module in task.model.modules())
