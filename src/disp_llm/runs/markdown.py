"""Text that came from outside -> Markdown that shows it as plain text."""

import re
from typing import Any

from disp_llm.config.errors import printable

MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|^#(?=[#\s]|$)|^[-+=](?=[-=\s]|$)")
"""Characters that could be markup where they stand; a name like `org/my_model` has none."""

NUMBER = re.compile(r"^(\d+)([.)])(?=\s|$)")
"""A number that would begin a list."""

HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def escaped(text: str) -> str:
    """Escapes text so that Markdown, also in a table, and HTML show it as it is, in one line."""
    text = MARKUP.sub(r"\\\g<0>", printable(text).strip())
    return NUMBER.sub(r"\1\\\2", text).translate(HTML)


def all_escaped(value: Any, code: tuple[str, ...] = ()) -> Any:
    """Escapes all text in a JSON value; `code` holds the keys of text that is shown as code."""
    if isinstance(value, dict):
        return {
            escaped(key): in_code(part) if key in code else all_escaped(part, code)
            for key, part in value.items()
        }
    if isinstance(value, list):
        return [all_escaped(part, code) for part in value]
    return escaped(value) if isinstance(value, str) else value


def in_code(text: str) -> str:
    """Makes text safe inside code, where no escape works and a backtick would end it."""
    return printable(text).replace("`", "'")
