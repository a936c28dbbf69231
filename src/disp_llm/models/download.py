"""Downloads weights of a hub model into the library's cache and reports progress."""

import contextlib
import io
import math
from typing import Any

from disp_llm.models.embedded import path_of
from disp_llm.models.files import hub_place
from disp_llm.models.source import HUB_ERRORS
from disp_llm.runs.progress import downloads

WEIGHTS = ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]
"""Files that transformers reads; repositories may hold the same weights in other formats too."""


def fetch(name: str, revision: str | None) -> None:
    """Downloads files that are not cached yet, if progress is watched. Otherwise loading downloads
    them, with its own progress bars. Errors are ignored: loading meets and reports them."""
    watching = downloads.get()
    place = path_of(hub_place(name)[0])
    if watching is None or place.exists():
        return
    import huggingface_hub
    from tqdm.asyncio import tqdm_asyncio

    class Bar(tqdm_asyncio):
        """Reports progress in place of drawing a bar."""

        def __init__(self, *values: Any, **options: Any) -> None:
            super().__init__(*values, **options | {"disable": False, "file": io.StringIO()})

        def display(self, *_: Any, **__: Any) -> None:
            """Reports downloaded and total megabytes."""
            if self.unit == "B" and self.total:
                come, total = (math.ceil(number / 1e6) for number in (self.n, self.total))
                watching(f"downloading {name}, MB", come, total, {})

    with contextlib.suppress(*HUB_ERRORS):
        huggingface_hub.snapshot_download(
            place.as_posix(), revision=revision, allow_patterns=WEIGHTS, tqdm_class=Bar
        )
