"""What a step is counted to hold, against what lives while one runs."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from disp_llm.training.losses import _loss_of_chunk
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

    lesson = (torch.randn(ROWS, HIDDEN, dtype=dtype), head, 0.5) if taught else None
    hidden = torch.randn(ROWS, HIDDEN, dtype=dtype, requires_grad=True)
    with LivingLogits() as logits:
        loss = _loss_of_chunk(hidden, torch.randint(VOCABULARY, (ROWS,)), head, lesson)
        torch.autograd.grad(loss.sum(), hidden)
    numbers = logits.peak / FLOAT / (ROWS * VOCABULARY)
    assert numbers <= counted <= numbers + 1
