"""What a new folder does not carry along of the original's settings: secrets, somebody's paths, and
code of others."""

import json
import logging
import re
from pathlib import Path
from typing import Any

from disp_llm.compact import CODE
from disp_llm.models.files import PROCESSOR

logger = logging.getLogger(__name__)

SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", *PROCESSOR)
"""Files that transformers writes from what it has loaded, or that are copied."""

SECRET_NAMES = re.compile(
    r"(^|_)(api_?key|(access|auth|bearer|refresh|session|api|hf|hub)_?token|authorization|passw(or)?d"
    r"|passphrase|credentials?|secrets?|(secret|private|access|signing)_?key)$"
)
"""How settings are called that hold secrets, in snake_case."""

WORDS = re.compile(
    r"_tokens?(_decoder|_encoder|_map)?$|^(vocab|merges|id2label|label2id)$|^chat_temp"
)
"""Settings that hold words of a vocabulary, labels or templates, and no names of files."""

WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[-. ]")
"""Where a name in another style than snake_case has words: `apiKey`, `api-key`."""

PATHS = re.compile(r"(file://)?~?(/[^/\n{}]+){2,}/?|[A-Za-z]:\\[^\n{}]*")
"""A path that begins at the root or at a home folder."""

USUAL = ("_name_or_path", "name_or_path")
"""Where transformers itself writes what it has loaded: nobody needs to hear of these."""


def strip_foreign(folder: Path) -> None:
    """Takes out of the settings of a new folder what those of the original carried along: secrets
    and paths, which a warning names, and code of others that `trust_remote_code=True` would run."""
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
    """A value without what is private or foreign in it. It stands at a place such as
    `text_config.paths[0]`; `gone` gets the places of what is private."""
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
    """Whether what an `auto_map` names is a class of our code."""
    return isinstance(stated, str) and f"{stated.partition('.')[0]}.py" in CODE
