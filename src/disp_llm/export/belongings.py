"""What belongs in a model folder: which files, and whose code."""

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from disp_llm.config.errors import InputError
from disp_llm.export.facts import FACTS
from disp_llm.models.files import PROCESSOR, files_of
from disp_llm.runs.files import read_json
from disp_llm.runs.sums import CHANGED_FOLDER, SUMS, extra_files, require_sums

CARD = "README.md"

CODE = (
    "configuration_disp_llm.py",
    "experts_disp_llm.py",
    "heads_disp_llm.py",
    "modeling_disp_llm.py",
)
"""The code that travels with a folder: files of `disp_llm.compact`."""

TEMPLATES = "additional_chat_templates"
"""The one folder that may lie in it, of .jinja files."""

SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", *PROCESSOR)
"""Files that transformers writes from what it has loaded, whoever wrote that, or that are copied.
"""


def belongings(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The files of a folder that belong there, by name, and the names of everything else: by its
    sums or, where others have saved what we exported, what is read of a model.

    Raises:
        InputError: one of them is a link or cannot be read, or code that is not ours would go along
            or be asked for; the sums of a folder of ours are missing or damaged.
    """
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
    _require_own_code(files)
    return files, sorted({*extra_files(folder), *_hidden(folder)} - names)


def _hidden(folder: Path) -> list[str]:
    return [f"{path.name}/" if path.is_dir() else path.name for path in folder.glob(".*")]


def _require_own_code(files: dict[str, Path]) -> None:
    """Refuses code other than what this package ships, and settings that ask for other code."""
    for name in CODE:
        shipped = resources.files("disp_llm.compact") / name
        if name in files and files[name].read_bytes() != shipped.read_bytes():
            raise InputError(
                "is not the code that this version of disp-llm writes into folders",
                field=str(files[name]),
                hint="export the folder again",
            )
    for path in (files[name] for name in SETTINGS if name in files):
        for name, classes in _code_of(read_json(path, "export the folder again")):
            if is_foreign(classes):
                raise InputError(
                    f"names code that is not ours ({name}: {classes})",
                    field=str(path),
                    hint="take that out of its auto_map, or export the folder again",
                )


def _code_of(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What settings, or a part of them, ask to be run."""
    stated = settings.get("auto_map", {})
    yield from stated.items() if isinstance(stated, dict) else [("auto_map", stated)]
    for key, part in settings.items():
        if isinstance(part, dict) and key != "auto_map":
            yield from _code_of(part)


def is_foreign(stated: Any) -> bool:
    """Whether what an `auto_map` names is something else than a class of our code."""
    module = stated.partition(".")[0] if isinstance(stated, str) else ""
    return f"{module}.py" not in CODE
