"""What a step is counted to hold, against what lives while one runs."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from disp_llm.training.losses import _ChunkedLoss, _loss_and_slope
from disp_llm.training.memory import FLOAT, LOGITS, TAUGHT_LOGITS

ROWS, VOCABULARY, HIDDEN = 32, 50, 8


class LivingLogits(TorchDispatchMode):
    """Bytes of all storages of ROWS × VOCABULARY numbers, at their peak."""

    def __init__(self):
        super().__init__()
        self.living: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.numel() == ROWS * VOCABULARY:
                storage = tensor.untyped_storage()
                place = storage._cdata
                if place not in self.living:
                    self.living[place] = storage.nbytes()
                    weakref.finalize(storage, self.living.pop, place)
        self.peak = max(self.peak, sum(self.living.values()))
        return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("taught", "counted"), [(False, LOGITS), (True, TAUGHT_LOGITS)])
def test_logits_of_a_chunk_take_what_is_counted_for_them(taught, counted, dtype):
    weight = torch.randn(VOCABULARY, HIDDEN, dtype=dtype)

    def head(hidden):
        return torch.nn.functional.linear(hidden, weight).float()

    hidden, teacher = torch.randn(2, ROWS, HIDDEN, dtype=dtype)
    targets = torch.randint(VOCABULARY, (ROWS,))

    def loss_of(logits, place, learns):
        lesson = (head(teacher), 0.5) if taught else None
        return _loss_and_slope(logits, targets, lesson, learns)

    with LivingLogits() as logits:
        _ChunkedLoss.apply(hidden.requires_grad_(), head, loss_of).sum().backward()
    numbers = logits.peak / FLOAT / (ROWS * VOCABULARY)
    assert numbers <= counted <= numbers + 1
