"""Hooks that last as long as a context."""

import contextlib
from collections.abc import Iterable, Iterator

from torch.utils.hooks import RemovableHandle


@contextlib.contextmanager
def hooks(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Removes the given registered hooks when the context ends."""
    registered = list(handles)
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()
