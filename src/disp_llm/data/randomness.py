"""Named random streams: what is drawn for one purpose never moves what is drawn for another."""

import torch

STREAMS = {
    "calibration": 0,  # which windows are scored
    "start": 1,  # what a parametrisation begins with
    "sizes": 2,  # the keep of a step, the same in all processes
    "steps": 3,  # windows and noise of a step of learning masks
    "weights": 5,  # windows of a step of training weights
    "words": 6,  # a sequence of synthetic text
    "adapters": 7,  # what adapters begin with
    "recovery words": 8,  # a sequence that `recover` has the original write: none that masks know
}
"""Numbers of the streams; a number that was given once stays, so that a seed keeps its meaning."""


def random_stream(name: str, seed: int, *place: int) -> torch.Generator:
    """The generator of a stream at a place, such as a step and a process."""
    return generator_of(seed, STREAMS[name], *place)


def shared_stream(name: str, seed: int, step: int) -> torch.Generator:
    """The generator of a step for all processes alike: each takes its part of what is drawn, so
    that the text of a step does not depend on how many they are."""
    return random_stream(name, seed, step, 0)


def generator_of(*numbers: int) -> torch.Generator:
    """A generator whose stream depends on all of the numbers (their order counts)."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % (2**63 - 25)
    return torch.Generator().manual_seed(mixed)
