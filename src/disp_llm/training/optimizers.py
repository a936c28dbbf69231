"""What steps the parameters that are trained: one optimiser, or several, each with its own."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from disp_llm.config.learning import TrainingConfig


@runtime_checkable
class Optimizer(Protocol):
    """What a training loop asks of an optimiser of torch, or of several together."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters with their step size; what is changed in a group holds from the next step."""
        ...

    def step(self) -> Any:
        """Moves the parameters along their gradients."""
        ...

    def zero_grad(self) -> None:
        """Drops the gradients."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Moments by the number of their parameter, as `state`, and the groups."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes such moments and groups."""
        ...


def optimizer_of(
    config: TrainingConfig,
    groups: list[dict[str, Any]],
    weights: dict[str, Any],
    foreach: bool | None = None,
) -> Optimizer:
    """AdamW of some groups and, of weights, what the settings say.

    Args:
        weights: a group of matrices; it may have none.
        foreach: of AdamW.
    """
    muon = config.weight_optimizer == "muon" and bool(weights["params"])
    adamw = torch.optim.AdamW(
        groups if muon else [*groups, weights],
        lr=config.learning_rate,
        betas=(config.betas[0], config.betas[1]),
        weight_decay=config.weight_decay,
        foreach=foreach,
    )
    if not muon:
        return adamw
    weights = {"lr": config.learning_rate, "weight_decay": config.weight_decay} | weights
    return Together([adamw, torch.optim.Muon([weights], adjust_lr_fn="match_rms_adamw")])


class Together:
    """Several optimisers as one, whose parameters are counted on from one to the next."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self._parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all, which are the parts' own."""
        return [group for part in self._parts for group in part.param_groups]

    def step(self) -> None:
        """One of each."""
        for part in self._parts:
            part.step()

    def zero_grad(self) -> None:
        """Of all."""
        for part in self._parts:
            part.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """What all keep."""
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        first = 0
        for part in self._parts:
            own = part.state_dict()
            state |= {first + index: kept for index, kept in own["state"].items()}
            for group in own["param_groups"]:
                groups.append(group | {"params": [first + index for index in group["params"]]})
            first += _count(part)
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Gives every part what is its own."""
        state, groups = state_dict["state"], iter(state_dict["param_groups"])
        first = 0
        for part in self._parts:
            end = first + _count(part)
            own = {index - first: kept for index, kept in state.items() if first <= index < end}
            theirs = [
                group | {"params": [index - first for index in group["params"]]}
                for group in (next(groups) for _ in part.param_groups)
            ]
            part.load_state_dict({"state": own, "param_groups": theirs})
            first = end


def _count(part: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in part.param_groups)
