"""The files of the package and what each is for, as its docstring says: a part of
docs/how-it-works.md."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "disp_llm"


def file_tree(rooms: list[str]) -> list[str]:
    """A line for each module, room by room."""
    lines: list[str] = []
    for room in rooms:
        lines += [f"**`{room}/`**", ""]
        lines += [
            f"- `{path.relative_to(PACKAGE / room)}`: {purpose(path)}"
            for path in sorted((PACKAGE / room).rglob("*.py"))
            if path.name != "__init__.py"
        ]
        lines.append("")
    return lines[:-1]


def purpose(path: Path) -> str:
    """The first sentence of a module's docstring."""
    told = ast.get_docstring(ast.parse(path.read_text())) or ""
    paragraph = " ".join(told.split("\n\n")[0].split())
    return re.split(r"\. (?=[A-Z])", paragraph)[0].rstrip(".") + "."
