"""What a new folder does not carry along of the original's settings: secrets, somebody's paths, and
code of others."""

import json
import logging
import re
from pathlib import Path
from typing import Any

from disp_llm.export.exported import SETTINGS, is_foreign

logger = logging.getLogger(__name__)

SECRET_NAMES = re.compile(
    r"(^|_)(api_?key|(access|auth|bearer|refresh|session|api|hf|hub)_?token|authorization|passw(or)?d"
    r"|passphrase|credentials?|secrets?|(secret|private|access|signing)_?key)$"
)
"""How settings are called that hold secrets, in snake_case."""

SECRETS = re.compile(
    r"(?<![A-Za-z0-9])(hf_[A-Za-z0-9]{20}|sk-[\w-]*[A-Za-z0-9]{20}|gh[opsur]_[A-Za-z0-9]{20}"
    r"|github_pat_\w{20}|glpat-[\w-]{16}|(AKIA|ASIA)[A-Z0-9]{16}|xox[a-z]-[\w-]{10}|AIza[\w-]{30}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10})|-----BEGIN [A-Z ]*PRIVATE KEY|://[^/\s:@]+:[^/\s:@]+@"
)
"""What keys of services, private keys and addresses with a password look like."""

WORDS = re.compile(
    r"_tokens?(_decoder|_encoder|_map)?$|^(vocab|merges|id2label|label2id)$|^chat_temp"
)
"""Settings that hold words of a vocabulary, labels or templates, and no names of files."""

WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[-. ]")
"""Where a name in another style than snake_case has words: `apiKey`, `api-key`."""

PLACES = re.compile(r"(file://)?~?(/[^/\n{}]+){2,}/?|[A-Za-z]:\\[^\n{}]*")
"""A path that begins at the root or at a home folder."""

HOMES = re.compile(r"(?<![\w.~])(/home/|/Users/|/root/|[A-Za-z]:\\Users\\)\w")
"""The beginning of a path inside a longer text that tells who works there."""

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


def is_private(value: Any) -> bool:
    """Whether a value is text that holds a secret, or a path on somebody's machine."""
    if not isinstance(value, str):
        return False
    return bool(PLACES.fullmatch(value) or HOMES.search(value) or SECRETS.search(value))


def _without(value: Any, place: str, gone: list[str]) -> Any:
    """A value without what is private or foreign in it.

    Args:
        place: where it stands, such as `text_config.paths[0]`.
        gone: gets the places of what is private.
    """
    if isinstance(value, dict):
        items = [(key, f"{place}.{key}".removeprefix("."), part) for key, part in value.items()]
    elif isinstance(value, list):
        items = [("", f"{place}[{number}]", part) for number, part in enumerate(value)]
    else:
        return value
    kept = []
    for key, inside, part in items:
        name = WORD_STARTS.sub("_", key).lower()
        stated = part if isinstance(part, str | dict | list) else None
        if name == "auto_map":
            own = part.items() if isinstance(part, dict) else ()  # old tokenizers have a list
            part = {to: code for to, code in own if not is_foreign(code)}
            kept += [(key, part)] if part else []
        elif is_private(key):  # which would be said
            gone.append(f"{place}.…".removeprefix("."))
        elif SECRET_NAMES.search(name) and stated:
            gone.append(inside)
        elif WORDS.search(name):
            kept.append((key, part))
        elif is_private(part):
            gone.append(inside)
        else:
            kept.append((key, _without(part, inside, gone)))
    return dict(kept) if isinstance(value, dict) else [part for _, part in kept]
