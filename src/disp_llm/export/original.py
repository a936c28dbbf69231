"""The model that an exported folder was made from, where it can be loaded from.

A card names a local original by its last part only; where that lies is known to the run.
"""

from pathlib import Path

from disp_llm.config.schema import read_toml
from disp_llm.export.facts import read_facts
from disp_llm.models import embedded
from disp_llm.runs.folder import Run
from disp_llm.runs.naming import is_on_hub, name_of

OF_FILES = "sha256:"
"""How a revision begins that is a hash; the hub's are commits."""


def original_of(folder: Path) -> str:
    """Name or path of the original of an exported folder: the local model that its run was given,
    or the name on the hub that its card gives; empty where nobody knows.

    Raises:
        InputError: the card or the settings of the run are damaged.
    """
    source = read_facts(folder).get("source", {})
    name = source.get("model", "")
    if not name:
        return ""
    local = named_by_run(folder)
    if local and name_of(local) == name and Path(local).exists():
        return local
    of_hub = is_on_hub(name) or not source.get("revision", "").startswith(OF_FILES)
    return name if of_hub or name == embedded.MODEL else ""


def named_by_run(folder: Path) -> str:
    """What the run of `prune` was given as its model that an exported folder comes from; empty
    where there is no such run.

    Raises:
        InputError: the settings of a run are damaged.
    """
    found = run_of(folder)
    return found[1] if found else ""


def run_of(folder: Path) -> tuple[Run, str] | None:
    """The run of `prune` that wrote an exported folder, or the one whose folder a run of `recover`
    has trained, and what it was given as its model; None where there is no such run.

    Raises:
        InputError: the settings of a run are damaged.
    """
    folder = folder.absolute().parent
    seen: set[Path] = set()
    while folder not in seen and Run(folder).config_file.is_file():
        seen.add(folder)
        path = Run(folder).config_file
        settings = read_toml(path, str(path), "name the original as the `teacher`")
        if "model" in settings:
            return Run(folder), str(settings["model"])
        if "folder" not in settings:
            return None
        folder = Path(str(settings["folder"])).absolute().parent
    return None
