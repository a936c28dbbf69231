"""The paper's hypernetwork, to the parameter."""

import pytest
import torch

from disp_llm.data.randomness import generator_of
from disp_llm.masks.layout import Layout
from disp_llm.masks.shapes import BlockShape
from disp_llm.training.hypernetwork import Hypernetwork


def llama(blocks: int, hidden: int, intermediate: int) -> Layout:
    shape = BlockShape(hidden, 3 * hidden, hidden, 2, intermediate)
    return Layout((shape,) * blocks)


@pytest.mark.parametrize(
    ("layout", "entries", "trainable"),
    [
        (llama(32, 4096, 11008), 876_544, 112_235_520),
        (llama(40, 5120, 13824), 1_372_160, 175_674_368),
    ],
    ids=["LLaMA-2-7B", "LLaMA-2-13B"],
)
def test_published_sizes(layout, entries, trainable):
    assert layout.entries == entries
    with torch.device("meta"):
        network = Hypernetwork(torch.zeros(layout.entries), layout.lengths, generator_of(0))
    assert sum(p.numel() for p in network.parameters()) == trainable


def test_adds_to_its_start_and_trains_every_entry():
    layout = llama(2, 8, 12)
    start = torch.randn(layout.entries, generator=generator_of(4))
    trained, again, at_zero = (
        Hypernetwork(begin, layout.lengths, generator_of(5)) for begin in (start, start, 0 * start)
    )
    assert torch.equal(trained(), again())  # the seed decides the weights
    torch.testing.assert_close(trained() - start, at_zero())
    trained().pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.parameters())
