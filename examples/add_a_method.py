"""Define a method, make it known, and prune with it.

python examples/add_a_method.py

docs/extend.md explains what a method is given and what it returns.
"""

import torch

import disp_llm
from disp_llm.masks.masking import masked
from disp_llm.masks.selection import Selection
from disp_llm.methods import Method, Reads, register
from disp_llm.training.losses import mean_losses
from disp_llm.training.problem import PruningProblem, calibration_windows


def first_order(problem: PruningProblem) -> Selection:
    """How much the loss changes, to first order, without an entry, per block parameter."""
    dense, progress = problem.dense, problem.job.count("scoring")
    windows = calibration_windows(problem).to(dense.device)
    mask = torch.ones(dense.layout.entries, device=dense.device, requires_grad=True)
    with masked(dense) as masking:
        for done in range(len(windows)):
            masking.set(mask)
            mean_losses(dense, windows[done : done + 1]).backward()
            progress(done + 1, len(windows))
    assert mask.grad is not None
    return Selection(mask.grad.abs() / problem.budget.entry_costs.to(dense.device))


MINE = Method(
    name="mine",
    title="First-order scores",
    reference="this example",
    choose=first_order,
    reads=Reads(gradients=True),
)


def main(
    model: str = "smollm2-135m",
    text: str | None = None,
    output_dir: str = "run-mine",
    **settings,
) -> float:
    """Perplexity of the model that has lost half of its block parameters."""
    register(MINE)
    result = disp_llm.prune(
        model, text=text, keep=[0.5], method="mine", output_dir=output_dir, **settings
    )
    return result.size(0.5).measured.perplexity


if __name__ == "__main__":
    print(f"perplexity {main():.2f}")
