"""What belongs in a model folder: which files, and whose code."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any

from disp_llm.config.errors import InputError
from disp_llm.models.files import PROCESSOR, weight_files
from disp_llm.runs.files import read_json

CODE = (
    "configuration_disp_llm.py",
    "experts_disp_llm.py",
    "heads_disp_llm.py",
    "modeling_disp_llm.py",
)
"""The code that travels with a folder: files of `disp_llm.compact`."""

BELONGS = (
    *("config.json", "generation_config.json"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "*.model"),
    *("chat_template.jinja", *PROCESSOR),
    *("README.md", "card.json", "SHA256SUMS", "LICENSE*", "NOTICE*"),
    *CODE,
)
"""Names of the files of a model folder, as patterns."""

TEMPLATES = "additional_chat_templates"
"""The one folder that may lie in it, of .jinja files."""

SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", *PROCESSOR)
"""Files that transformers writes from what it has loaded, whoever wrote that, or that are copied.
"""


def belongings(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The files of a folder that belong there, by name, and the names of everything else.

    Raises:
        InputError: one of them is a link or cannot be read, or code that is not ours would go along
            or be asked for.
    """
    files: dict[str, Path] = {}
    left_out: list[str] = []
    weights = weight_files(folder)
    for path in sorted([*folder.iterdir(), *(folder / TEMPLATES).glob("*")]):
        name = path.relative_to(folder).as_posix()
        belongs = _belongs(name) and (path.suffix != ".safetensors" or path in weights)
        if belongs and (path.is_symlink() or (path.parent.is_symlink() and path.parent != folder)):
            raise InputError(
                "is a link, and what it points to may be no part of the model",
                field=str(path),
                hint="put the file itself in its place, or delete it",
            )
        if belongs and path.is_file():
            files[name] = path
        elif name != TEMPLATES or path.is_symlink() or not path.is_dir():
            left_out.append(f"{name}/" if path.is_dir() else name)
    _require_own_code(files)
    return files, left_out


def _belongs(name: str) -> bool:
    folder, _, inside = name.rpartition("/")
    if folder:
        return folder == TEMPLATES and fnmatchcase(inside, "[!.]*.jinja")
    return any(fnmatchcase(name, pattern) for pattern in BELONGS) and not name.startswith(".")


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
