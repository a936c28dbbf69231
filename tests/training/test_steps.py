"""What a step draws, weighs, clips and at which rate it goes: each against its formula."""

import dataclasses
import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from disp_llm.config.errors import InputError
from disp_llm.config.learning import LearnConfig, TrainingConfig
from disp_llm.data.randomness import random_stream
from disp_llm.runs.folder import Run
from disp_llm.runs.job import Process
from disp_llm.training import learning
from disp_llm.training.estimators import Sample
from disp_llm.training.learning import learn
from disp_llm.training.loop import Loss, Schedule, _exchange, _first_step, train
from disp_llm.training.problem import PruningProblem


def test_small_sizes_are_drawn_more_often(problem):
    """Of u^1.5 the mean is 1 / 2.5, and a half lies below 0.5^1.5."""
    several = dataclasses.replace(problem, keeps=(0.8, 0.4, 0.6))
    drawn = torch.tensor([several.keep_at(random_stream("sizes", 0, i)) for i in range(2000)])
    shares = (drawn - 0.4) / 0.4
    assert float(shares.min()) >= 0
    assert float(shares.max()) <= 1
    assert float(shares.mean()) == pytest.approx(1 / 2.5, abs=0.02)
    assert float(shares.median()) == pytest.approx(0.5**1.5, abs=0.03)


def test_a_step_draws_the_same_size_again(problem):
    several = dataclasses.replace(problem, keeps=(0.8, 0.4))
    first, again = (several.keep_at(random_stream("sizes", 0, 5)) for _ in range(2))
    assert first == again


@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_the_rate_grows_to_its_peak_and_falls_to_a_tenth(warmup):
    schedule = Schedule(TrainingConfig(schedule="cosine"), 40, "", warmup=warmup)
    rates = [schedule.rate(step) for step in range(41)]
    first = int(40 * warmup)
    assert rates[:first] == pytest.approx([(step + 1) / first for step in range(first)])
    assert rates[first] == pytest.approx(1.0)
    half = first + (40 - first) // 2
    assert rates[half] == pytest.approx(0.55)
    assert rates[40] == pytest.approx(0.1)
    assert rates[first:] == sorted(rates[first:], reverse=True)
    constant = Schedule(TrainingConfig(schedule="constant"), 40, "", warmup=warmup)
    assert {constant.rate(step) for step in range(first, 41)} == {1.0}
    linear = Schedule(TrainingConfig(schedule="linear"), 40, "", warmup=warmup)
    falls = [linear.rate(step) for step in range(first, 40)]
    assert falls == pytest.approx([1 - done / len(falls) for done in range(len(falls))])


@pytest.mark.parametrize("clip", [0.0, 0.5, 100.0])
def test_the_gradient_is_as_long_as_the_clip_allows(problem, clip):
    class Vector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values = nn.Parameter(torch.zeros(2))

    trained, before = Vector(), torch.tensor([3.0, 4.0])

    def loss_of(step: int) -> Loss:
        return (trained.values * before).sum(), {"loss": torch.ones(())}

    config = TrainingConfig(schedule="constant")
    optimizer = torch.optim.SGD(trained.parameters(), lr=1.0)
    train(trained, [optimizer], loss_of, Schedule(config, 1, "training", clip=clip), problem.job)
    wanted = before * min(1.0, clip / 5.0 if clip else 1.0)
    torch.testing.assert_close(trained.values.detach(), -wanted, rtol=1e-4, atol=1e-6)


def learner_of(problem: PruningProblem, monkeypatch, config: LearnConfig) -> learning.MaskLearner:
    """The learner of a run, caught where its first step would begin."""
    caught = []

    def catch(trained, optimizers, loss_of, schedule, job) -> None:
        caught.append(loss_of.__self__)

    training = TrainingConfig(length=24, distill=0.0)
    job = dataclasses.replace(
        problem.job,
        config=dataclasses.replace(problem.job.config, learn=config, training=training),
    )
    with monkeypatch.context() as patch:
        patch.setattr(learning, "train", catch)
        start = torch.zeros(problem.budget.layout.entries)
        learn(dataclasses.replace(problem, job=job), start, 1)
    return caught[0]


def test_the_penalty_counts_what_the_sample_says_is_counted(problem, monkeypatch):
    """Which need not be the mask that the model runs under: that of `gumbel_soft` is a blend."""
    entries = problem.budget.layout.entries
    counted = (torch.arange(entries) % 3 == 0).float()

    def sample(draw) -> Sample:
        return Sample(torch.ones(entries) + 0 * draw.logits, counted)

    monkeypatch.setitem(learning.ESTIMATORS, "reinmax", sample)
    config = LearnConfig(estimator="reinmax", penalty=6.0, adapter_rank=0)
    learner = learner_of(problem, monkeypatch, config)
    monkeypatch.setattr(learning, "mean_losses", lambda *asked: torch.full((2,), 2.0))
    total, figures = learner.loss(0)
    share = float(problem.budget.share(problem.budget.layout.counts(counted)))
    assert share < 0.5
    assert float(figures["keep"]) == pytest.approx(share)
    assert float(total) == pytest.approx(2.0 + 6.0 * abs(math.log(share / 0.6)), rel=1e-5)


def test_a_reward_counts_by_how_far_it_lies_from_those_before(problem, monkeypatch):
    """The first, beside nothing, teaches nothing; then 3 − 5 and 1 − (0.9·5 + 0.1·3) weigh what the
    slope of the log-probability would be alone."""
    learner = learner_of(
        problem, monkeypatch, LearnConfig(estimator="policy_gradient", penalty=1e-9)
    )

    def slope(reward: float, step: int) -> torch.Tensor:
        monkeypatch.setattr(learning, "mean_losses", lambda *asked: torch.full((2,), reward))
        total, _ = learner.loss(step)
        parts = torch.autograd.grad(total, list(learner.state.logits.parameters()))
        return torch.cat([part.flatten() for part in parts])

    found = [slope(reward, step) for step, reward in enumerate((5.0, 3.0, 1.0))]
    later = 0.9 * 5 + 0.1 * 3
    with monkeypatch.context() as patch:
        patch.setattr(learning.MaskLearner, "_against_baseline", lambda self, reward: 1.0)
        plain = [slope(0.0, step) for step in range(3)]
    assert all(bool(one.any()) for one in plain)
    for one, whole, weight in zip(found, plain, (0.0, 3.0 - 5.0, 1.0 - later), strict=True):
        torch.testing.assert_close(one, weight * whole, rtol=1e-4, atol=1e-6)


def test_the_first_reward_moves_nothing(problem, monkeypatch):
    """To the bit, though the penalty makes the reward more precise than its average."""
    learner = learner_of(
        problem, monkeypatch, LearnConfig(estimator="policy_gradient", penalty=6.0)
    )
    learner.loss(0)[0].backward()
    assert not learner.state.logits.logits.grad.any()


class OneOfTwo(Process):
    """A process beside one whose every number is 0."""

    count = 2


@pytest.mark.parametrize("stop", [False, True])
def test_gradient_loss_and_stop_are_those_of_all_processes(stop):
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.tensor([[2.0, 4.0]])
    figures = {"loss": 3.0, "keep": 0.5}
    process = OneOfTwo(Accelerator(cpu=True), torch.device("cpu"))
    assert _exchange([layer.weight], figures, stop, process) is stop
    assert figures == {"loss": 1.5, "keep": 0.5}
    assert layer.weight.grad.tolist() == [[1.0, 2.0]]


def test_a_checkpoint_of_another_run_is_gone_on_from_only_if_asked_for(problem, tmp_path):
    of_another = {"step": "3", "run": "0" * 64}
    with pytest.raises(InputError, match="of other settings, another model or other text"):
        _first_step(of_another, problem.job)
    asked_for = dataclasses.replace(problem.job, run=Run(tmp_path, anyway=True))
    assert _first_step(of_another, asked_for) == 3
    assert _first_step({}, problem.job) == 0
    problem.job.run.config_file.write_text("keep = 0.6")
    own = {"step": "2", "run": problem.job.run.identity}
    assert _first_step(own, problem.job) == 2
