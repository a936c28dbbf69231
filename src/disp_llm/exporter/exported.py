"""Checks an exported folder, lists the files that belong in it, and finds its original."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from disp_llm.compact import CODE
from disp_llm.config.errors import InputError
from disp_llm.config.names import SITES, is_on_hub, name_of
from disp_llm.config.schema import Count, as_type, read_toml
from disp_llm.exporter.facts import CARD, read_facts
from disp_llm.models import embedded
from disp_llm.models.files import files_of
from disp_llm.runs.files import read_json
from disp_llm.runs.folder import Run
from disp_llm.runs.ownership import FACTS, kind_of
from disp_llm.runs.sums import CHANGED_FOLDER, SUMS, extra_files, folder_problems, require_sums

logger = logging.getLogger(__name__)

TEMPLATES = "additional_chat_templates"
"""Name of the only subfolder that it may have; this holds .jinja files."""


@dataclass(frozen=True)
class Blocks:
    """The entry `disp_llm` of an exported folder's configuration."""

    widths: dict[str, Annotated[list[Count], Meta(min_length=1)]]
    """Widths of every site, block by block."""
    biases: bool = False

    def __post_init__(self) -> None:
        if not set(SITES) <= self.widths.keys():
            raise ValueError("has not the widths of all sites")
        if len({len(blocks) for blocks in self.widths.values()}) > 1:
            raise ValueError("has not a width of every site for every block")


@dataclass(frozen=True)
class Exported:
    """The part of an exported folder's `config.json` that is checked."""

    model_type: str
    architectures: list[str]
    disp_llm: Blocks


def exported_config(folder: Path) -> dict[str, Any]:
    """Reads and checks the configuration of an exported folder."""
    stated = folder / "config.json"
    config = read_json(stated, CHANGED_FOLDER) if stated.is_file() else {}
    if "disp_llm" not in config:
        raise InputError(
            f"{folder} is not an exported folder",
            field="folder",
            hint="name a model folder of a run, such as run/keep-0.5",
        )
    as_type(config, Exported, field=str(stated), hint=CHANGED_FOLDER)
    return config


def has_experts(config: dict[str, Any]) -> bool:
    """Whether an exported folder of this configuration has mixtures of experts."""
    said = config["disp_llm"]
    mlp = said.get("mlp")
    return "mixture" in said or (isinstance(mlp, dict) and "experts" in mlp)


def model_files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Returns the files that belong to a folder's model, by name, and the names of all others,
    which a warning lists. Refuses files that are missing, damaged or links."""
    files, left_out = _belonging(folder)
    for problem in folder_problems(folder, but=(CARD,)) if SUMS in files else ():
        raise problem  # cards may differ from their sums: people edit them
    if left_out:
        names = ", ".join(name if name.isprintable() else ascii(name) for name in left_out)
        logger.warning("left out, as no part of a model folder: %s", names)
    return files, left_out


def _belonging(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Divides a folder's files into those of the model and all others: by `SHA256SUMS` or, if
    another program saved the model again, by the names that loading a model reads."""
    if (folder / FACTS).is_file() or (folder / SUMS).exists():
        names = {*require_sums(folder), SUMS}
    else:
        templates = folder.glob(f"{TEMPLATES}/[!.]*.jinja")
        found = (*files_of(folder), *templates, *(folder / name for name in CODE), folder / CARD)
        names = {path.relative_to(folder).as_posix() for path in found if path.is_file()}
    files = {name: folder / name for name in sorted(names)}
    for path in files.values():
        if path.is_symlink() or (path.parent != folder and path.parent.is_symlink()):
            raise InputError(
                "is a link, and what it points to may be no part of the model",
                field=str(path),
                hint="put the file itself in its place, or delete it",
            )
        if not path.is_file():
            raise InputError("is missing", field=str(path), hint=CHANGED_FOLDER)
    hidden = [f"{path.name}/" if path.is_dir() else path.name for path in folder.glob(".*")]
    return files, sorted({*extra_files(folder), *hidden} - names)


OF_FILES = "sha256:"
"""Prefix of a revision that is a hash of local files; the hub's revisions are commits."""


def original_of(folder: Path) -> str:
    """Returns the original of an exported folder: the path of the local model that its run was
    given, or the name in its card if that is on the hub or embedded; empty if unknown."""
    source = read_facts(folder).get("source", {})
    name = source.get("model", "")
    if not name:
        return ""
    local = named_by_run(folder)
    if local and name_of(local) == name and Path(local).exists():
        return local
    of_hub = is_on_hub(name) or not source.get("revision", "").startswith(OF_FILES)
    return name if of_hub or name == embedded.MODEL else ""


def require_original(model: str) -> str:
    """Returns the original to compare an exported folder with.

    Raises:
        InputError: it is no exported folder, or its original is unknown or gone.
    """
    folder = Path(model)
    found = original_of(folder) if folder.is_dir() else ""
    if not found:
        lost = lost_original(folder)
        what = f"{lost}, which {model} was made from, is gone"
        what = what if lost else f"nothing says what {model} was made from"
        raise InputError(what, field="against", hint="name the original")
    return found


def lost_original(folder: Path) -> str:
    """Returns the original that the run of an exported folder was given, if it is there no more;
    else empty."""
    named = named_by_run(folder)
    return "" if Path(named).exists() else named


def named_by_run(folder: Path) -> str:
    """Returns the `model` setting of the `prune` run that an exported folder comes from; empty if
    there is no such run."""
    found = run_of(folder)
    return found[1] if found else ""


def run_of(folder: Path) -> tuple[Run, str] | None:
    """Returns the `prune` run that an exported folder comes from, directly or through runs of
    `recover`, and that run's `model` setting; None if there is no such run."""
    folder = folder.absolute().parent
    seen: set[Path] = set()
    while folder not in seen and kind_of(folder) and Run(folder).config_file.is_file():
        seen.add(folder)
        path = Run(folder).config_file
        settings = read_toml(path, str(path), "name the original as the `teacher`")
        if kind_of(folder) != "recover":
            return Run(folder), str(settings["model"])
        folder = Path(str(settings["model"])).absolute().parent
    return None
