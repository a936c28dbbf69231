"""Learning masks: it learns, resumes bit for bit, holds the budget, ends when it is asked to."""

import dataclasses
import math

import pytest
import torch
from conftest import run_in, tiny_model, tiny_prunable, with_config

from disp_llm.config.errors import InputError
from disp_llm.config.learning import LearnConfig, TrainingConfig
from disp_llm.data.randomness import generator_of
from disp_llm.data.windows import Corpus
from disp_llm.masks.budget import project
from disp_llm.masks.masking import masked
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Selection
from disp_llm.models.architectures import family_of
from disp_llm.training import learning, loop
from disp_llm.training.adapters import step_scale
from disp_llm.training.checkpoints import checkpoints
from disp_llm.training.estimators import ESTIMATORS
from disp_llm.training.learning import learn
from disp_llm.training.loop import Interrupted
from disp_llm.training.losses import CHUNK, Teacher, token_losses
from disp_llm.training.problem import PruningProblem

TRAINING = TrainingConfig(length=24)
LEARN = LearnConfig(steps=8)
STEPS = 8


@pytest.fixture(autouse=True)
def checkpoints_are_frequent(monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 3)


def start_of(problem: PruningProblem) -> torch.Tensor:
    return torch.randn(problem.budget.layout.entries, generator=generator_of(7))


def learned(
    problem: PruningProblem,
    folder,
    *,
    start=None,
    learn_config=LEARN,
    training=TRAINING,
    steps=STEPS,
    on_step=lambda metrics: None,
    stop_requested=lambda: False,
) -> Selection:
    """What is learned in a run folder; `on_step` gets the figures of every step."""
    job = dataclasses.replace(
        problem.job,
        config=dataclasses.replace(problem.job.config, learn=learn_config, training=training),
        run=run_in(folder),
        progress=lambda stage, done, total, metrics: on_step(metrics),
        stop_requested=stop_requested,
    )
    start = start_of(problem) if start is None else start
    return learn(dataclasses.replace(problem, job=job), start, steps)


class Killed(Exception):
    """Stands for a kill -9 between two steps."""


@pytest.mark.parametrize("parametrisation", ["logits", "hypernetwork"])
@pytest.mark.parametrize("estimator", ["projected", "reinmax"])
def test_resumed_equals_uninterrupted(problem, tmp_path, parametrisation, estimator):
    config = dataclasses.replace(LEARN, parametrisation=parametrisation, estimator=estimator)
    whole = learned(problem, tmp_path / "whole", learn_config=config)

    def kill(metrics: dict) -> None:
        if metrics["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        learned(problem, tmp_path / "cut", learn_config=config, on_step=kill)
    steps = []
    resumed = learned(
        problem, tmp_path / "cut", learn_config=config, on_step=lambda m: steps.append(m["step"])
    )
    assert steps == [4, 5, 6, 7, 8]  # from the checkpoint of step 3
    assert torch.equal(resumed.importance, whole.importance)
    assert torch.equal(resumed.compensation.scales, whole.compensation.scales)
    assert not torch.equal(whole.importance, start_of(problem))


def test_a_stop_that_is_asked_for_writes_a_checkpoint(problem, tmp_path):
    seen = []
    with pytest.raises(Interrupted):
        learned(problem, tmp_path, on_step=seen.append, stop_requested=lambda: len(seen) >= 4)
    assert checkpoints(tmp_path / "checkpoint")[-1].name == "step-0000005.safetensors"


def test_a_truncated_checkpoint_is_named_and_the_one_before_it_serves(problem, tmp_path):
    learned(problem, tmp_path)
    newest = checkpoints(tmp_path / "checkpoint")[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.raises(InputError, match=str(newest)) as raised:
        learned(problem, tmp_path)
    assert "delete this file" in str(raised.value)
    newest.unlink()
    steps = []
    learned(problem, tmp_path, on_step=lambda m: steps.append(m["step"]))
    assert steps == [7, 8]


def test_the_budget_is_met_at_every_step(problem, tmp_path):
    seen = []
    learned(problem, tmp_path, on_step=seen.append)
    assert [metrics["step"] for metrics in seen] == list(range(1, 9))
    largest = float(problem.budget.entry_costs.max()) / problem.budget.dense_block_parameters
    assert all(0.6 - largest < metrics["keep"] <= 0.6 for metrics in seen)


def test_several_sizes_draw_a_keep_between_them(problem, tmp_path):
    several = dataclasses.replace(problem, keeps=(0.8, 0.4))
    seen = []
    learned(several, tmp_path, on_step=seen.append)
    asked = [metrics["keep_asked"] for metrics in seen]
    assert len(set(asked)) == 8
    assert all(0.4 <= keep <= 0.8 for keep in asked)


def test_penalty_brings_the_size_down(problem, tmp_path):
    """The paper's objective: from about 0.92 of the parameters towards the asked share."""
    config = LearnConfig(
        steps=60, start="random", parametrisation="hypernetwork", estimator="reinmax",
        shift=3.0, temperature=1.0, penalty=6.0,
    )  # fmt: skip
    training = TrainingConfig(
        length=24, learning_rate=1e-2, betas=(0.9, 0.999), schedule="constant", compile="no"
    )
    seen = []
    learned(
        problem,
        tmp_path,
        start=torch.zeros(problem.budget.layout.entries),
        learn_config=config,
        training=training,
        steps=60,
        on_step=seen.append,
    )
    assert seen[0]["keep"] > 0.85
    assert abs(seen[-1]["keep"] - 0.6) < 0.08


def test_learning_lowers_the_loss_of_the_exact_masks(problem, tmp_path):
    tokens = problem.corpus.streams[0][: 20 * 64].view(20, 64)

    def loss(selection: Selection) -> float:
        kept = project(selection.importance, problem.budget, 0.6).kept.float()
        scales = selection.compensation.scales
        with masked(problem.dense) as masking, torch.no_grad():
            masking.set(kept if scales is None else kept * scales)
            return float(token_losses(problem.dense, tokens).mean())

    training = TrainingConfig(length=64, compile="no", distill=0.0)
    plain = learned(
        problem,
        tmp_path / "masks",
        learn_config=LearnConfig(steps=60, scale_rate=0.0, adapter_rank=0),
        training=training,
        steps=60,
    )
    assert plain.compensation.scales is None
    assert loss(plain) < loss(Selection(start_of(problem))) - 0.1
    scaled = learned(
        problem,
        tmp_path / "scales",
        learn_config=LearnConfig(steps=60, adapter_rank=0),
        training=training,
        steps=60,
    )
    assert loss(scaled) < loss(plain)


def test_gradient_checkpointing_changes_nothing_but_memory(problem, tmp_path):
    """Blocks run again in the backward pass, as often as they have run before."""
    runs: list[int] = []
    hook = problem.dense.blocks[1].mlp.register_forward_pre_hook(lambda *inputs: runs.append(1))
    plain, once = learned(problem, tmp_path / "a"), len(runs)
    training = dataclasses.replace(TRAINING, gradient_checkpointing="yes")
    again = learned(problem, tmp_path / "b", training=training)
    hook.remove()
    assert torch.equal(plain.importance, again.importance)
    assert len(runs) - once == once + STEPS  # the original, which teaches, has no backward pass
    assert "forward" not in vars(problem.dense.blocks[0])


def test_settings_reach_the_optimiser_and_the_estimator(problem, monkeypatch):
    learn_config = LearnConfig(
        scale_rate=0.2, adapter_rate=0.3, weight_rate=0.4, adapter_rank=2, temperature=0.7,
        shift=1.5,
    )  # fmt: skip
    training = TrainingConfig(learning_rate=0.1, betas=(0.5, 0.6), weight_decay=0.7)
    problem = with_config(problem, learn=learn_config, training=training)
    state = learning._initial_state(problem, start_of(problem))
    (optimizer,) = learning._optimizers(problem, state)
    groups = optimizer.param_groups
    assert [group["lr"] for group in groups] == [0.1, 0.2, 0.3, 0.4 * step_scale(problem.dense)]
    assert [group["weight_decay"] for group in groups] == [0.7, 0, 0, 0]
    assert {group["betas"] for group in groups} == {(0.5, 0.6)}

    def watched(draw):
        raise Killed((draw.temperature, draw.shift))

    monkeypatch.setitem(ESTIMATORS, "projected", watched)
    with pytest.raises(Killed) as drawn:
        learn(problem, start_of(problem), 1)
    assert drawn.value.args == ((0.7, 1.5),)


def test_a_loss_that_is_no_number_stops_before_anything_is_spoilt(problem, tmp_path):
    with pytest.raises(InputError, match="loss of nan") as raised:
        learned(problem, tmp_path, start=start_of(problem) * math.nan)
    assert raised.value.field == "learning_rate"
    assert not checkpoints(tmp_path / "checkpoint")


@pytest.mark.parametrize("estimator", ["reinmax", "gumbel_soft", "policy_gradient"])
def test_masks_that_keep_nothing_name_what_draws_them(estimator, problem, tmp_path):
    config = LearnConfig(estimator=estimator, penalty=6.0, shift=-80.0)
    with pytest.raises(InputError, match="step 1 draws masks that keep nothing") as raised:
        learned(problem, tmp_path, learn_config=config)
    assert raised.value.field == "shift"
    assert not checkpoints(tmp_path / "checkpoint")


def test_text_shorter_than_a_window_names_the_flag(problem, tmp_path):
    short = dataclasses.replace(problem, corpus=Corpus((problem.corpus.streams[0][:10],)))
    with pytest.raises(InputError, match="length"):
        learned(short, tmp_path)


def test_chunked_loss_and_gradient_equal_the_plain_ones():
    """More tokens than one chunk holds, and a different weight for every token's loss."""
    model = tiny_model("llama", max_position_embeddings=2 * CHUNK)
    target = PrunableModel(model, family_of(model.config))
    tokens = torch.randint(4, 320, (2, CHUNK + 30), generator=generator_of(1))
    weights = torch.rand(2, CHUNK + 29, generator=generator_of(2))
    gradients = []
    for chunked in (True, False):
        mask = torch.ones(target.layout.entries, requires_grad=True)
        with masked(target) as masking:
            masking.set(mask)
            if chunked:
                losses = token_losses(target, tokens)
            else:
                logits = model(tokens).logits[:, :-1].transpose(1, 2)
                losses = torch.nn.functional.cross_entropy(logits, tokens[:, 1:], reduction="none")
            (losses * weights).sum().backward()
        gradients.append((losses.detach(), mask.grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_sites_that_lose_nothing_have_no_masks():
    """Each would keep another copy of what it multiplies for the backward pass."""
    target, tokens = tiny_prunable("llama", heads=True), torch.arange(3, 40)[None]
    kept = torch.ones(target.layout.entries)
    kept[target.layout.entries_of("mlp_mid")] = 0.5

    def run(sites):
        saved = []
        with masked(target, sites) as masking:
            masking.set(kept.clone().requires_grad_())
            with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda one: one):
                logits = target.model(tokens).logits
        return logits, sum(one.numel() for one in saved)

    (whole, more), (logits, fewer) = run(()), run(("mlp_mid", "heads"))
    assert torch.equal(whole, logits)
    stream = 4 * tokens.numel() * target.layout.blocks[0].hidden * len(target.blocks)
    assert more - fewer >= stream


def test_the_original_teaches_without_its_masks(problem):
    """The divergence from the dense model, whatever masks are set, and a gradient for these."""
    windows = torch.arange(40).view(2, 20)
    model = problem.dense.model
    with torch.no_grad():
        dense = model(windows).logits[:, :-1].log_softmax(-1)
    mask = torch.rand(problem.budget.layout.entries, requires_grad=True)
    with masked(problem.dense) as masking:
        masking.set(mask)
        teacher = Teacher(problem.dense, 1.0, masking.lifted)
        losses = token_losses(problem.dense, windows, teacher)
        given = model(windows).logits[:, :-1].log_softmax(-1)
    wanted = (dense.exp() * (dense - given)).sum(-1)
    torch.testing.assert_close(losses, wanted, rtol=1e-4, atol=1e-5)
    ours, plain = (
        torch.autograd.grad(part.mean(), mask, retain_graph=True)[0] for part in (losses, wanted)
    )
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-6)


def test_learning_from_the_original_brings_the_divergence_down(problem, tmp_path):
    seen = []
    training = dataclasses.replace(TRAINING, distill=1.0)
    learned(
        problem, tmp_path, training=training, steps=40, on_step=lambda m: seen.append(m["loss"])
    )
    assert sum(seen[-8:]) < 0.8 * sum(seen[:8])


def test_generators_differ_in_every_number_and_in_their_order():
    draws = {
        float(torch.rand((), generator=generator_of(*numbers)))
        for numbers in [(0, 1), (1, 0), (0, 1, 0), (0, 2), (0,), (1,)]
    }
    assert len(draws) == 6


def test_policy_gradient_needs_no_gradient_through_the_model(problem, tmp_path):
    """Forward passes only: what is trained moves, the model is never differentiated, and the
    moving baseline survives a kill."""
    config = LearnConfig(
        steps=8, start="random", estimator="policy_gradient", shift=3.0, penalty=6.0
    )
    start = torch.zeros(problem.budget.layout.entries)

    def watch(module, args, output) -> None:
        assert not output.last_hidden_state.requires_grad

    handle = problem.dense.model.model.register_forward_hook(watch)
    whole = learned(problem, tmp_path / "whole", start=start, learn_config=config)

    def kill(metrics: dict) -> None:
        if metrics["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        learned(problem, tmp_path / "cut", start=start, learn_config=config, on_step=kill)
    resumed = learned(problem, tmp_path / "cut", start=start, learn_config=config)
    assert torch.equal(resumed.importance, whole.importance)
    handle.remove()
    assert whole.compensation.scales is None
    assert not torch.equal(whole.importance, start)
    assert not torch.equal(whole.importance, whole.importance[0].expand_as(whole.importance))


@pytest.mark.usefixtures("compiler")
def test_compiled_blocks_learn_the_same(problem, tmp_path):
    """And leave the model as it was. One translation serves all blocks."""
    figures: dict[str, list[float]] = {}
    for compiled in ("no", "yes"):
        training = dataclasses.replace(TRAINING, compile=compiled, learning_rate=1e-3)
        losses = figures.setdefault(compiled, [])
        learned(
            problem,
            tmp_path / compiled,
            training=training,
            on_step=lambda metrics, losses=losses: losses.append(metrics["loss"]),
        )
    assert figures["yes"] == pytest.approx(figures["no"], rel=1e-4)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 4  # not one a block: with masks, as the original, and losses
    assert not any("forward" in vars(module) for module in problem.dense.model.modules())
