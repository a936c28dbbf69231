"""Named random streams: draws for one purpose never shift the draws for another."""

import torch

STREAMS = {
    "calibration": 0,  # which windows are scored
    "start": 1,  # initial values of a parametrisation
    "sizes": 2,  # the keep of each step, the same in all processes
    "steps": 3,  # windows and noise of each step of learning masks
    "weights": 5,  # windows of each step of training weights
    "words": 6,  # sequences of synthetic text
    "adapters": 7,  # initial values of adapters
    "recovery words": 8,  # the same for `recover`, so not those that masks have seen
}
"""Numbers of the streams. Never change one: a seed must keep its meaning."""


def random_stream(name: str, seed: int, *place: int) -> torch.Generator:
    """Returns the generator of a stream at a place, such as a step and a process."""
    return generator_of(seed, STREAMS[name], *place)


def shared_stream(name: str, seed: int, step: int) -> torch.Generator:
    """Returns the generator of a step, the same in all processes. Each takes its part of the draw,
    so the text of a step does not depend on the number of processes."""
    return random_stream(name, seed, step, 0)


def generator_of(*numbers: int) -> torch.Generator:
    """Returns a generator whose stream depends on all of the numbers and their order."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % (2**63 - 25)
    return torch.Generator().manual_seed(mixed)
