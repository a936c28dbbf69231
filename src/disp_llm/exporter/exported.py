"""An exported folder: whether it is one, which files belong in it, and what it was made of."""

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
"""The one folder that may lie in it, of .jinja files."""


@dataclass(frozen=True)
class Blocks:
    """What `disp_llm` of an exported folder's configuration says of its blocks."""

    widths: dict[str, Annotated[list[Count], Meta(min_length=1)]]
    """Of every site, block by block."""
    biases: bool = False

    def __post_init__(self) -> None:
        if not set(SITES) <= self.widths.keys():
            raise ValueError("has not the widths of all sites")
        if len({len(blocks) for blocks in self.widths.values()}) > 1:
            raise ValueError("has not a width of every site for every block")


@dataclass(frozen=True)
class Exported:
    """What is read of an exported folder's `config.json`."""

    model_type: str
    architectures: list[str]
    disp_llm: Blocks


def exported_config(folder: Path) -> dict[str, Any]:
    """The configuration of an exported folder, checked."""
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
    """The files of a folder that belong to its model, by name, none of them damaged or a link, and
    the names of the others, of which a line warns."""
    files, left_out = _belonging(folder)
    for problem in folder_problems(folder, but=(CARD,)) if SUMS in files else ():
        raise problem  # but of cards, which are edited by hand
    if left_out:
        names = ", ".join(name if name.isprintable() else ascii(name) for name in left_out)
        logger.warning("left out, as no part of a model folder: %s", names)
    return files, left_out


def _belonging(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """By its sums or, where others have saved what we exported, by what is read of a model."""
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
"""How a revision begins that is a hash; the hub's are commits."""


def original_of(folder: Path) -> str:
    """Name or path of the original of an exported folder: the local model that its run was given,
    or the name on the hub that its card gives; empty where nobody knows.
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


def require_original(model: str) -> str:
    """The original of an exported folder, which is compared with it.

    Raises:
        InputError: it is no such folder, or nobody knows.
    """
    folder = Path(model)
    found = original_of(folder) if folder.is_dir() else ""
    if not found:
        what = f"nothing says what {model} was made from"
        raise InputError(what, field="against", hint="name the original")
    return found


def named_by_run(folder: Path) -> str:
    """What the run of `prune` was given as its model that an exported folder comes from; empty
    where there is no such run.
    """
    found = run_of(folder)
    return found[1] if found else ""


def run_of(folder: Path) -> tuple[Run, str] | None:
    """The run of `prune` that wrote an exported folder, or the one whose folder a run of `recover`
    has trained, and what it was given as its model; None where there is no such run.
    """
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
