"""Whether a model that was loaded is the whole model: every weight, of the right shape, and finite.

transformers fills what a file lacks with random numbers and goes on; nothing here does.
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
"""What older versions of transformers wrote beside the weights: numbers that every model computes.
"""

SHOWN = 3
"""How many names a message gives."""


def require_whole(name: str, report: dict[str, Any]) -> None:
    """Refuses a model whose weights are not those that its configuration describes.

    Args:
        report: what `from_pretrained` says of its loading (`output_loading_info`), in which a tied
            head and computed buffers are not missing.

    Raises:
        InputError: naming weights that are missing, of another shape, or too many.
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
    """Refuses a model with a weight or a buffer that is not a finite number throughout."""
    require_finite_tensors(name, chain(model.named_parameters(), model.named_buffers()))


def require_finite_tensors(name: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """The same of tensors by their names.

    Raises:
        InputError: naming those that are not finite.
    """
    damaged = [key for key, tensor in tensors if not _is_finite(tensor)]
    if damaged:
        raise InputError(
            f"'{name}' has weights that are not finite numbers: {first_of(damaged)}",
            field="model",
            hint=f"{AGAIN}, or train it again from where it was sound",
        )


def first_of(names: Iterable[str]) -> str:
    """`a, b, c and 4 more`."""
    listed = sorted(names)
    more = len(listed) - SHOWN
    return ", ".join(listed[:SHOWN]) + (f" and {more} more" if more > 0 else "")


@torch.no_grad()
def _is_finite(tensor: Tensor) -> bool:
    packed = type(tensor.data) is not Tensor  # a quantised tensor of another package
    if packed or not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.itemsize == 1:  # torch compares no float8
        tensor = tensor.float()
    # Nothing is copied: the smallest and the largest number are NaN where any is.
    return bool(torch.stack(torch.aminmax(tensor.detach())).isfinite().all())
