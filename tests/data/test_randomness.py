"""Random streams: what is drawn for one purpose is not drawn for another."""

import torch

from disp_llm.data.randomness import STREAMS, random_stream


def test_no_two_streams_draw_the_same():
    drawn = {name: torch.rand(4, generator=random_stream(name, seed=0)) for name in STREAMS}
    assert len({tuple(numbers.tolist()) for numbers in drawn.values()}) == len(STREAMS)
