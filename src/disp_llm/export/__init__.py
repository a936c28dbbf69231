"""Masks -> what others load: the plan of the cut, folders with their card, other formats.

Others use `compact_model`, `fold_into_weights`, `export_folder`, `stream_folder`, `write_card`,
`save`, `push`, `write_gguf` and `fuse`, which is also `disp_llm.export.fuse`.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """`fuse`, imported when it is asked for: torch is not needed to import this package."""
    if name != "fuse":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from disp_llm.export.fusing import fuse

    return fuse
