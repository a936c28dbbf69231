"""A causal model as pruning sees it: its blocks, their branches and the layout of its sites.

D hidden, V vocabulary.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from disp_llm.compact.modeling_disp_llm import has_branch, linear_at
from disp_llm.config.errors import InputError
from disp_llm.config.names import BRANCHES, HEADS, SITES, Site
from disp_llm.masks.layout import Layout, layout_of
from disp_llm.masks.shapes import expert_weights
from disp_llm.models.architectures import Branch, Family
from disp_llm.models.loading import Loaded
from disp_llm.models.windows import required_bos


def further_sites(family: Family, branches: bool = True) -> tuple[Site, ...]:
    """Returns the sites beyond the five that blocks of this family can have: heads if they can be
    pruned, and whole branches if `branches`."""
    heads = (HEADS,) if family.can_lose_heads else ()
    return (*heads, *(BRANCHES if branches else ()))


@dataclass(frozen=True)
class PrunableModel:
    """A dense or already pruned model with its row of the architecture table."""

    model: PreTrainedModel
    family: Family
    sites: tuple[Site, ...] = SITES
    """Sites that its masks have."""
    processor: tuple[Path, ...] = ()
    """Processor files, if the model is a wrapper."""

    @classmethod
    def of(cls, loaded: Loaded, sites: tuple[Site, ...] = SITES) -> "PrunableModel":
        """Wraps a loaded model."""
        return cls(loaded.model, loaded.family, sites, loaded.processor)

    @cached_property
    def layout(self) -> Layout:
        """The sites of every block, measured on the model. For a pruned model only the widths
        inside attention are right."""
        return layout_of(self.blocks, self.model.config, self.family, self.sites)

    @property
    def base(self) -> Any:
        """The module that maps tokens to hidden states."""
        return self.family.base_of(self.model)

    @property
    def language_model(self) -> nn.Module:
        """The module that holds the blocks: the base model, or one part of it in a wrapper."""
        return self.model.base_model.get_submodule(self.family.tower)

    @property
    def blocks(self) -> nn.ModuleList:
        """List of blocks; raises InputError if there is none at the row's path."""
        try:
            blocks = self.family.blocks_of(self.model)
        except AttributeError:
            blocks = None
        if not isinstance(blocks, nn.ModuleList):
            raise InputError(
                f"{self.model.config.model_type} has no list of blocks at '{self.family.blocks}'",
                field="model",
                hint="correct its row (docs/extend.md)",
            )
        return blocks

    def branches_of(self, block: nn.Module) -> tuple[Branch, Branch]:
        """Returns the attention (or its replacement) and the MLP of a block, in execution order."""
        return self.family.branches_of(block)

    @property
    def present(self) -> Iterator[tuple[nn.Module, Branch]]:
        """Every branch that was not pruned as a whole, with its block, in order."""
        for block in self.blocks:
            for branch in self.branches_of(block):
                if has_branch(block, branch.scatter):
                    yield block, branch

    def linear_paths(self, block: nn.Module) -> tuple[str, ...]:
        """Returns the paths of the linear layers inside a block, in execution order."""
        branches = self.branches_of(block)
        return tuple(path for branch in branches for path in branch.linear_paths)

    def linears(self) -> Iterator[Any]:
        """Yields all linear layers inside the blocks, except in dropped branches."""
        for block, branch in self.present:
            for path in branch.linear_paths:
                yield linear_at(block, path)

    def weights_of_experts(self) -> Iterator[nn.Parameter]:
        """Yields the packed weights and the routers of all mixtures, except in dropped branches."""
        for block, branch in self.present:
            for path in branch.experts.weights if branch.experts else ():
                yield block.get_parameter(path)

    @property
    def is_whole(self) -> bool:
        """Whether this process holds all weights: none is sharded or left out."""
        weights = (linear.weight for linear in self.linears())
        return not any(isinstance(weight, DTensor) or weight.is_meta for weight in weights)

    @property
    def usual_blocks(self) -> bool:
        """Whether every branch left is attention or a dense MLP, as serving engines expect (no
        hybrid, no mixture), and the row names no reason why vLLM cannot run it."""
        family = self.family
        dense = all(b.experts is None for _, b in self.present)
        attend = all(b is family.mlp or family.is_attention(b) for _, b in self.present)
        return dense and attend and not family.unserved

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.head_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return self.model.dtype

    @cached_property
    def keeps_apart(self) -> bool:
        """Whether examples packed into one window do not see each other, given their position ids.
        Only attention may look back, and the model must build its mask from positions."""
        forward = inspect.signature(self.base.forward)
        family = self.family
        alone = family.masks_by_place and not family.has_states and not family.tower
        return alone and "position_ids" in forward.parameters

    @property
    def bos_token_id(self) -> int | None:
        """Token that every window must begin with; None if the model needs none."""
        return required_bos(self.model, self.family)

    @property
    def head_weight(self) -> Tensor:
        """Weight that maps hidden states to logits, (V, D)."""
        output: Any = self.model.get_output_embeddings()
        return output.weight

    @cached_property
    def head(self) -> Callable[[Tensor], Tensor]:
        """Hidden states (..., D) -> logits (..., V) in float32, with the family's scaling."""
        output: Any = self.model.get_output_embeddings()
        multiplier, divisor, softcap = self._of_logits

        def head(hidden: Tensor) -> Tensor:
            logits = output(hidden)
            if multiplier is not None:
                logits = logits * multiplier
            if divisor is not None:
                logits = logits / divisor
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            return logits.float()

        return head

    @property
    def logit_scale(self) -> float:
        """Factor that the head applies to its logits."""
        multiplier, divisor, _ = self._of_logits
        return (1.0 if multiplier is None else multiplier) / (1.0 if divisor is None else divisor)

    @property
    def _of_logits(self) -> tuple[float | None, ...]:
        """Multiplier, divisor and soft cap of the head's logits; None where there is none."""
        config, family = self.model.config.get_text_config(), self.family
        keys = (family.logits_multiplier, family.logits_divisor, family.logits_softcap)
        return tuple(getattr(config, key) if key else None for key in keys)

    @property
    def parameters(self) -> int:
        """Number of all parameters; tied parameters count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def other_parameters(self) -> dict[str, int]:
        """Number of parameters in each part of a wrapper other than its language model; empty if
        the model is no wrapper."""
        if not self.family.tower:
            return {}
        numbers: Counter[str] = Counter()
        for name, parameter in self.model.base_model.named_parameters():
            numbers[name.partition(".")[0]] += parameter.numel()
        del numbers[self.family.tower]
        return dict(numbers)

    @property
    def block_parameters(self) -> int:
        """Number of weights in the linear layers inside the blocks, experts included."""
        return self.block_parameters_of()

    def block_parameters_of(self, tokens: int | None = None) -> int:
        """Returns how many block parameters some tokens use if no two choose the same expert.

        Args:
            tokens: number of tokens; None = enough to use all experts.
        """
        config = self.model.config.get_text_config()
        total = sum(linear.weight.numel() for linear in self.linears())
        for block, branch in self.present:
            if branch.experts is None:
                continue
            router, *packed = expert_weights(block, branch)
            used = len(router)
            if tokens is not None:
                used = min(used, tokens * getattr(config, branch.experts.chosen))
            total += router.numel() + sum(weight[0].numel() * used for weight in packed)
        return total
