"""Removes from a new folder's settings what the original's held: secrets, local paths, and
references to third-party code."""

import json
import logging
import re
from pathlib import Path
from typing import Any

from disp_llm.compact import CODE
from disp_llm.models.files import PROCESSOR

logger = logging.getLogger(__name__)

SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", *PROCESSOR)
"""Files that transformers writes from loaded settings, or that are copied."""

SECRET_NAMES = re.compile(
    r"(^|_)(api_?key|(access|auth|bearer|refresh|session|api|hf|hub)_?token|authorization|passw(or)?d"
    r"|passphrase|credentials?|secrets?|(secret|private|access|signing)_?key)$"
)
"""Names, in snake_case, of settings that hold secrets."""

WORDS = re.compile(
    r"_tokens?(_decoder|_encoder|_map)?$|^(vocab|merges|id2label|label2id)$|^chat_temp"
)
"""Names of settings that hold vocabulary, labels or templates, never paths."""

WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[-. ]")
"""Where words begin in names that are not in snake_case: `apiKey`, `api-key`."""

PATHS = re.compile(r"(file://)?~?(/[^/\n{}]+){2,}/?|[A-Za-z]:\\[^\n{}]*")
"""A path of two parts or more from the root or a home folder, or one with a Windows drive."""

USUAL = ("_name_or_path", "name_or_path")
"""Settings in which transformers itself writes what it has loaded; removed without a warning."""


def strip_foreign(folder: Path) -> None:
    """Removes what a new folder's settings inherited from the original: secrets and paths, which a
    warning names, and references to third-party code that `trust_remote_code=True` would run."""
    named: list[str] = []
    for path in (folder / name for name in SETTINGS):
        if path.is_file():
            found, gone = json.loads(path.read_text(encoding="utf-8")), list[str]()
            kept = _without(found, "", gone)
            if kept != found:
                said = json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False)
                path.write_text(said + "\n", encoding="utf-8")
            named += [f"{place} in {path.name}" for place in gone if place not in USUAL]
    if named:
        logger.warning("left out, as secrets or paths of a machine: %s", ", ".join(named))


def _without(value: Any, place: str, gone: list[str]) -> Any:
    """Returns a value without its private and foreign parts. It stands at a `place` such as
    `text_config.paths[0]`; `gone` receives the places of removed secrets and paths."""
    if isinstance(value, list):
        parts = [(f"{place}[{number}]", part) for number, part in enumerate(value)]
        gone += [inside for inside, part in parts if _is_path(part)]
        return [_without(part, inside, gone) for inside, part in parts if not _is_path(part)]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, part in value.items():
        inside = f"{place}.{key}".removeprefix(".")
        name = WORD_STARTS.sub("_", key).lower()
        secret = SECRET_NAMES.search(name) and isinstance(part, str | dict | list)
        if name == "auto_map":
            own = part.items() if isinstance(part, dict) else ()  # old tokenizers have a list
            part = {to: code for to, code in own if _is_ours(code)}
            kept |= {key: part} if part else {}
        elif WORDS.search(name) and not secret:
            kept[key] = part
        elif secret or _is_path(part):
            gone.append(inside)
        else:
            kept[key] = _without(part, inside, gone)
    return kept


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and bool(PATHS.fullmatch(value))


def _is_ours(stated: Any) -> bool:
    """Whether an entry of an `auto_map` names a class in this package's own files (`CODE`)."""
    return isinstance(stated, str) and f"{stated.partition('.')[0]}.py" in CODE
