"""The files of a wrapper's processor, which turns pictures and sound into what the model takes.

They travel with an exported folder as they are: what is pruned changes nothing of them, and to copy
them asks for none of the libraries that a processor needs.
"""

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError

from disp_llm.models.files import PROCESSOR, hub_place


def processor_files(model: Path, commit: str | None) -> tuple[Path, ...]:
    """Those that a model has, in its folder or, of one of the hub, fetched into the cache."""
    if model.exists():
        found = (model / name for name in PROCESSOR)
        return tuple(path for path in found if path.is_file())
    fetched = (_fetched(model.as_posix(), name, commit) for name in PROCESSOR)
    return tuple(path for path in fetched if path is not None)


def _fetched(name: str, file: str, commit: str | None) -> Path | None:
    """A file of the hub; None where the model has none of that name."""
    try:
        return Path(huggingface_hub.hf_hub_download(hub_place(name)[0], file, revision=commit))
    except EntryNotFoundError:
        return None
