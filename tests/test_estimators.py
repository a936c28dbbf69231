"""Surrogate gradients against exact ones, by enumerating every mask of a small function."""

import itertools

import pytest
import torch

from disp_llm.budget import Budget, project
from disp_llm.estimators import ESTIMATORS
from disp_llm.masks import BlockShape, Layout

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


def mean_gradient(name: str, logits: torch.Tensor, shift: float = 0.0) -> torch.Tensor:
    generator, total = noise(), torch.zeros(N)
    for _ in range(DRAWS // 10):
        x = logits.clone().requires_grad_(True)
        quadratic(ESTIMATORS[name](x, unused, generator, shift, 1.0)[0]).backward()
        total += x.grad
    return total / (DRAWS // 10)


def test_reinmax_gradient_is_half_the_distance_to_the_sample():
    """The closed form at τ = 1: ½·|B − π0|."""
    x = torch.linspace(-4, 4, 401).requires_grad_(True)
    mask, counted = ESTIMATORS["reinmax"](x, unused, noise(), 3.0, 1.0)
    assert counted is mask
    assert set(mask.detach().unique().tolist()) <= {0.0, 1.0}
    mask.sum().backward()
    torch.testing.assert_close(
        x.grad, 0.5 * (mask.detach() - torch.sigmoid(x + 3).detach()).abs(), rtol=1e-4, atol=1e-6
    )


def test_printed_reinmax_has_the_slopes_of_the_printed_formula():
    """At x = 0, c = 3: 0.477 where the sample is 1 and 0.414 where it is 0."""
    x = torch.zeros(4000, requires_grad=True)
    mask, _ = ESTIMATORS["reinmax_printed"](x, unused, noise(), 3.0, 1.0)
    mask.sum().backward()
    ones = mask.detach() == 1
    assert x.grad[ones].mean().item() == pytest.approx(0.477, abs=5e-4)
    assert x.grad[~ones].mean().item() == pytest.approx(0.414, abs=5e-4)


def test_probability_of_a_one_is_that_of_the_shifted_sigmoid():
    for name in ("reinmax", "reinmax_printed", "straight_through"):
        mask, _ = ESTIMATORS[name](torch.zeros(DRAWS), unused, noise(1), 3.0, 1.0)
        assert mask.mean().item() == pytest.approx(0.9526, abs=0.006), name


def test_reinmax_mean_gradient_is_close_to_the_exact_one():
    """Second order: exact for a function whose entries do not interact beyond pairs, in the mean of
    each entry's own slope; straight-through is first order and visibly worse on a quadratic."""
    logits = torch.tensor([-1.5, -0.5, 0.0, 0.5, 1.0, 2.0])
    exact = exact_gradient(logits)
    reinmax = (mean_gradient("reinmax", logits) - exact).norm() / exact.norm()
    straight = (mean_gradient("straight_through", logits) - exact).norm() / exact.norm()
    assert reinmax < 0.06
    assert reinmax < straight


def test_projected_meets_the_budget_and_has_a_sigmoid_slope():
    shape = BlockShape(hidden=8, qkv=12, q=8, pieces=2, intermediate=16, biases=(0, 0, 0, 0, 0))
    budget = Budget(Layout((shape, shape)))
    x = torch.randn(budget.layout.entries, generator=noise()).requires_grad_(True)
    mask, _ = ESTIMATORS["projected"](x, lambda s: project(s, budget, 0.5), noise(), 0.0, 1.0)
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
        ESTIMATORS[name](x, unused, noise(seed), 0.0, 1.0)[0] for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
