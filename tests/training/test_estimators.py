"""Surrogate gradients against exact ones, by enumerating every mask of a small function."""

import itertools

import pytest
import torch

from disp_llm.masks.budget import Budget, project
from disp_llm.masks.layout import Layout
from disp_llm.masks.shapes import BlockShape
from disp_llm.training.estimators import ESTIMATORS, Draw, deterministic_mask

N = 6
DRAWS = 20_000


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unused(logits: torch.Tensor):
    raise AssertionError("a sampling estimator needs no projection")


def quadratic(mask: torch.Tensor) -> torch.Tensor:
    """A function whose entries interact."""
    weights = torch.linspace(-1, 1, N)
    return (mask * weights).sum(-1) + 0.5 * (mask * weights.flip(0)).sum(-1) ** 2


def exact_gradient(logits: torch.Tensor) -> torch.Tensor:
    """d/dx of the mean of `quadratic` over all 2^N masks with their Bernoulli probabilities."""
    x = logits.clone().requires_grad_(True)
    p = torch.sigmoid(x)
    masks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=N)))
    probabilities = (masks * p + (1 - masks) * (1 - p)).prod(-1)
    (probabilities * quadratic(masks)).sum().backward()
    return x.grad


def many(logits: torch.Tensor, draws: int) -> torch.Tensor:
    """The same logits once a draw, in a row, since an entry is drawn apart from all others."""
    return logits.repeat(draws).requires_grad_(True)


def mean_gradient(name: str, logits: torch.Tensor, shift: float = 0.0) -> torch.Tensor:
    x = many(logits, DRAWS // 10)
    mask = ESTIMATORS[name](Draw(x, unused, noise(), shift, 1.0)).mask
    quadratic(mask.view(-1, N)).sum().backward()
    return x.grad.view(-1, N).mean(0)


def test_reinmax_gradient_is_half_the_distance_to_the_sample():
    """The closed form at τ = 1: ½·|B − π0|."""
    x = torch.linspace(-4, 4, 401).requires_grad_(True)
    sample = ESTIMATORS["reinmax"](Draw(x, unused, noise(), 3.0, 1.0))
    mask = sample.mask
    assert sample.counted is mask
    assert set(mask.detach().unique().tolist()) <= {0.0, 1.0}
    mask.sum().backward()
    torch.testing.assert_close(
        x.grad, 0.5 * (mask.detach() - torch.sigmoid(x + 3).detach()).abs(), rtol=1e-4, atol=1e-6
    )


def test_probability_of_a_one_is_that_of_the_shifted_sigmoid():
    mask = ESTIMATORS["reinmax"](Draw(torch.zeros(DRAWS), unused, noise(1), 3.0, 1.0)).mask
    assert mask.mean().item() == pytest.approx(0.9526, abs=0.006)


def test_reinmax_mean_gradient_is_close_to_the_exact_one():
    """Second order: exact for a function whose entries do not interact beyond pairs, in the mean of
    each entry's own slope."""
    logits = torch.tensor([-1.5, -0.5, 0.0, 0.5, 1.0, 2.0])
    exact = exact_gradient(logits)
    assert (mean_gradient("reinmax", logits) - exact).norm() / exact.norm() < 0.06


def test_projected_meets_the_budget_and_has_a_sigmoid_slope():
    shape = BlockShape(hidden=8, qkv=12, q=8, num_input_projections=2, intermediate=16)
    budget = Budget(Layout((shape, shape)))
    x = torch.randn(budget.layout.entries, generator=noise()).requires_grad_(True)
    mask = ESTIMATORS["projected"](
        Draw(x, lambda s: project(s, budget, 0.5), noise(), 0.0, 1.0)
    ).mask
    chosen = project(x.detach(), budget, 0.5)
    assert torch.equal(mask.detach(), chosen.kept.float())  # exactly 0 or 1, no rounding left
    assert budget.keep(budget.layout.counts(mask.detach())) <= 0.5
    mask.sum().backward()
    soft = torch.sigmoid(x.detach() - chosen.threshold)
    torch.testing.assert_close(x.grad, soft * (1 - soft))


@pytest.mark.parametrize("name", sorted(set(ESTIMATORS) - {"projected"}))
def test_seed_decides_the_sample(name):
    x = torch.zeros(1000)
    first, again, other = (
        ESTIMATORS[name](Draw(x, unused, noise(seed), 0.0, 1.0)).mask for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_released_code_draws_a_soft_mask_and_an_independent_hard_one():
    """One Gumbel: P(soft > ½) = 1 − exp(−e^(x+c)), so masks start all but whole at x = 0, c = 3."""
    x = torch.zeros(DRAWS, requires_grad=True)
    sample = ESTIMATORS["gumbel_soft"](Draw(x, unused, noise(), -0.5, 0.4))
    assert set(sample.counted.detach().unique().tolist()) == {0.0, 1.0}
    assert ((sample.mask > 0) & (sample.mask < 1)).float().mean() > 0.99
    expected = 1 - torch.exp(-torch.exp(torch.tensor(-0.5)))
    assert sample.counted.mean().item() == pytest.approx(expected.item(), abs=0.012)
    agree = ((sample.mask > 0.5).float() == sample.counted).float().mean()
    assert agree.item() == pytest.approx(float(expected**2 + (1 - expected) ** 2), abs=0.015)
    sample.mask.sum().backward()
    soft = sample.mask.detach()
    torch.testing.assert_close(x.grad, soft * (1 - soft) / 0.4)


def test_policy_gradient_is_unbiased():
    """The mean of reward × ∂log p over draws is the exact gradient, interactions included."""
    logits = torch.tensor([-1.5, -0.5, 0.0, 0.5, 1.0, 2.0])
    x = many(logits, DRAWS)
    sample = ESTIMATORS["policy_gradient"](Draw(x, unused, noise(), 0.0, 1.0))
    sample.log_probability.backward()  # a draw's share depends on its own entries alone
    rewards = quadratic(sample.mask.view(-1, N))
    found = (rewards[:, None] * x.grad.view(-1, N)).mean(0)
    exact = exact_gradient(logits)
    assert (found - exact).norm() / exact.norm() < 0.05


def test_likely_entries_are_those_that_are_kept_more_often_than_not():
    x = torch.linspace(-4, 2, 25)
    for name in ("reinmax", "gumbel_soft"):
        counted = ESTIMATORS[name](Draw(many(x, 4000), unused, noise(), 1.0, 0.4)).counted
        often = counted.detach().view(-1, 25).mean(0)
        clear = (often - 0.5).abs() > 0.05
        assert torch.equal(deterministic_mask(x, name, 1.0)[clear], (often > 0.5)[clear]), name


def test_an_entry_at_even_odds_is_dropped():
    logits = torch.tensor([-3.1, -3.0, -2.9])
    assert deterministic_mask(logits, "reinmax", 3.0).tolist() == [False, False, True]


def test_what_is_counted_has_the_slope_of_its_soft_value():
    """σ'((x + c + noise)/τ)/τ, with the noise that was drawn second."""
    x, shift, temperature = torch.linspace(-2, 2, 401).requires_grad_(), 0.5, 0.4
    draw = Draw(x, unused, noise(3), shift, temperature)
    ESTIMATORS["gumbel_soft"](draw).counted.sum().backward()
    again = noise(3)
    _, other = (-(-torch.rand(401, generator=again).log()).log() for _ in range(2))
    soft = torch.sigmoid((x.detach() + shift + other) / temperature)
    torch.testing.assert_close(x.grad, soft * (1 - soft) / temperature)
