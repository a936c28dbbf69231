"""What things are called outside of this machine: by names, never by places.

A path tells who works where and on what. Cards, pages and plots say its last part; a name on the
hub (`org/name`) is no path and stays whole.
"""

import os
import re
import shlex
from pathlib import Path
from typing import Any

FILES = (
    *("output_dir", "text", "eval_text", "examples", "eval_examples"),
    *("recipe", "runs", "run", "output"),
    *("to", "original", "suite"),
)
"""Settings that name files and folders, and nothing on the hub."""

SEVERAL = ("text", "eval_text", "examples", "eval_examples")
"""Those of them whose flag takes several values."""

HUB_NAME = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}(@[\w./-]+)?(:[\w.-]+)*")
"""`org/name`, also `org/name@revision`, and of a data set `org/name:config:split`."""

HELD_OUT = re.compile(r"(answers in )?the last \d+%? of |answers in ")
"""How the name of a text begins that is the end of another, or of which answers alone count."""


def is_on_hub(name: str) -> bool:
    """Whether a name has the form of one on the hub, and nothing of that name lies here."""
    return bool(HUB_NAME.fullmatch(name)) and not os.path.exists(name.partition(":")[0])


def name_of(place: str) -> str:
    """A name on the hub as it is, a path by its last part."""
    return place if is_on_hub(place) else Path(place).name or place


def names_in(text: str) -> str:
    """The name of one text or of several (`a.txt, b.txt`) without the folders of its files."""
    begins = HELD_OUT.match(text)
    before = begins[0] if begins else ""
    return before + ", ".join(map(name_of, text.removeprefix(before).split(", ")))


def without_paths(command: str) -> str:
    """A command line in which every path is its last part."""
    try:
        words = shlex.split(command)
    except ValueError:  # an open quotation mark: it was said by a program, not by a shell
        words = command.split()
    told, setting = [], ""
    for word in words:
        if not word.startswith("--"):
            told.append(shown(setting, word))
            setting = setting if setting in SEVERAL else ""
            continue
        flag, equals, value = word.partition("=")
        setting = flag.removeprefix("--").replace("-", "_")
        told.append(f"{flag}={shown(setting, value)}" if equals else flag)
        setting = "" if equals else setting
    return shlex.join(told)


def shown(setting: str, value: Any) -> Any:
    """The value of a setting without the folders of the paths in it."""
    if isinstance(value, list):
        return [shown(setting, part) for part in value]
    if not isinstance(value, str):
        return value
    return Path(value).name or value if setting in FILES else name_of(value)


def named(value: Any) -> Any:
    """Anything that a JSON file can hold, where strings are names of models and texts, without the
    folders of these."""
    if isinstance(value, dict):
        return {names_in(key): named(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [named(inner) for inner in value]
    return names_in(value) if isinstance(value, str) else value


def without_paths_in_message(message: str) -> str:
    """A message in which every word that is a path is its last part."""
    return re.sub(
        r"[^\s'\"`(),;]*/[^\s'\"`(),;:]*",
        lambda found: found[0] if "://" in found[0] else name_of(found[0]),
        message,
    )
