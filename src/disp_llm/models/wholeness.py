"""Checks that a loaded model is whole: every weight is there, of the right shape, and finite.

transformers fills missing weights with random numbers and goes on; this package refuses the model.
"""

import re
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from disp_llm.config.errors import InputError

AGAIN = "copy or download the model again"

CONSTANTS = re.compile(r"(inv_freq|masked_bias|position_ids)$")
"""Buffers that older transformers stored with the weights, and that every model computes itself."""

SHOWN = 3
"""Number of names in a message."""


def require_whole(name: str, report: dict[str, Any]) -> None:
    """Refuses a model whose weights are not those that its configuration describes.

    Args:
        report: loading report of `from_pretrained` (`output_loading_info`); it does not list a tied
            head or computed buffers as missing.

    Raises:
        InputError: names weights that are missing, of another shape, or unexpected.
    """
    mismatched = [
        f"{key} ({list(found)}, not {list(wanted)})"
        for key, found, wanted in report["mismatched_keys"]
    ]
    unexpected = [key for key in report["unexpected_keys"] if not CONSTANTS.search(key)]
    for keys, what in (
        (mismatched, "has weights of other shapes than its config.json says"),
        (report["missing_keys"], "lacks weights"),
        (unexpected, "has weights that its config.json does not describe"),
    ):
        if keys:
            raise InputError(f"'{name}' {what}: {first_of(keys)}", field="model", hint=AGAIN)


def require_finite(name: str, model: PreTrainedModel) -> None:
    """Refuses a model with values in weights or buffers that are not finite."""
    require_finite_tensors(name, chain(model.named_parameters(), model.named_buffers()))


def require_finite_tensors(name: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Refuses named tensors with values that are not finite.

    Raises:
        InputError: names those tensors.
    """
    damaged = [key for key, tensor in tensors if not _is_finite(tensor)]
    if damaged:
        raise InputError(
            f"'{name}' has weights that are not finite numbers: {first_of(damaged)}",
            field="model",
            hint=f"{AGAIN}, or train it again from where it was sound",
        )


def first_of(names: Iterable[str]) -> str:
    """Returns the first names in order, as `a, b, c and 4 more`."""
    listed = sorted(names)
    more = len(listed) - SHOWN
    return ", ".join(listed[:SHOWN]) + (f" and {more} more" if more > 0 else "")


@torch.no_grad()
def _is_finite(tensor: Tensor) -> bool:
    packed = type(tensor.data) is not Tensor  # a quantised tensor of another package
    if packed or not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.itemsize == 1:  # torch cannot compare float8
        tensor = tensor.float()
    # This needs no copy: the minimum and the maximum are NaN if any value is.
    return bool(torch.stack(torch.aminmax(tensor.detach())).isfinite().all())
