"""Text of several kinds from what lies on a Debian machine: code, other languages, technical prose.

Instructions with their answers, in the form of Alpaca, can be added from a file.

    apt-get download debian-handbook debian-reference-en developers-reference
    for package in *.deb; do dpkg -x "$package" packages; done
    python experiments/general_texts.py packages texts

    texts/  code.jsonl (Python's standard library and C headers)
            languages.jsonl (the Debian Administrator's Handbook, all of its translations)
            technical.jsonl (the same in English, the Debian Reference, the Developer's Reference)
            instructions.jsonl (with --instructions FILE: instruction, input and answer of each row)

Nothing of it is committed; the handbook is free under GPL-2+ and CC-BY-SA 3.0, the others are under
GPL-2+. They stand in for the data sets of `--text general` where no hub can be reached.
"""

import argparse
import gzip
import html
import json
import random
import re
import sysconfig
from pathlib import Path

LONGEST = 6000
"""Characters of a document: longer ones are cut into pieces."""

DOCS = "usr/share/doc"
HANDBOOK = f"{DOCS}/debian-handbook/html"
REFERENCES = (
    f"{DOCS}/debian-reference-common/docs/debian-reference.en.txt.gz",
    "usr/share/developers-reference/developers-reference.txt.gz",
)


def text_of(page: str) -> str:
    """What a reader sees of an HTML page."""
    page = re.sub(r"(?s)<(script|style|head).*?</\1>", "", page)
    page = re.sub(r"<(p|div|h\d|li|pre|tr)[^>]*>", "\n", page)
    plain = html.unescape(re.sub(r"<[^>]+>", "", page))
    return re.sub(r"\n\s*\n+", "\n\n", plain).strip()


def pages(folder: Path) -> list[str]:
    """The sections of the handbook in one language."""
    return [text_of(path.read_text(errors="ignore")) for path in sorted(folder.glob("sect.*.html"))]


def is_translated(page: str, original: set[str]) -> bool:
    """Whether less than a third of its long lines stand in the English edition."""
    lines = [line for line in page.split("\n") if len(line) > 40]
    return bool(lines) and sum(line in original for line in lines) < 0.3 * len(lines)


def languages(handbook: Path, english: list[str], draw: random.Random) -> list[str]:
    """Up to 25 translated sections of every language."""
    original = {line for page in english for line in page.split("\n")}
    found: list[str] = []
    for folder in sorted(handbook.iterdir()):
        if not folder.name.startswith("en"):
            whole = [page for page in pages(folder) if is_translated(page, original)]
            found += draw.sample(whole, min(25, len(whole)))
    return found


def technical(packages: Path, english: list[str]) -> list[str]:
    """The handbook in English, and two references."""
    return english + [
        gzip.open(packages / name, "rt", errors="ignore").read() for name in REFERENCES
    ]


def instructions(file: Path) -> list[str]:
    """Instruction, what it is about, and the answer, a line or more each."""
    rows = json.loads(file.read_text(encoding="utf-8"))
    parts = [[row["instruction"], row["input"], row["output"]] for row in rows]
    return ["\n".join(filter(None, part)) for part in parts]


def code(draw: random.Random) -> list[str]:
    """Files of Python's standard library, and headers of the C library."""
    library = Path(sysconfig.get_paths()["stdlib"])
    modules = [
        path
        for path in sorted(library.rglob("*.py"))
        if not {"site-packages", "test", "tests", "idlelib"} & set(path.parts)
    ]
    headers = sorted(Path("/usr/include").rglob("*.h"))
    chosen = draw.sample(modules, min(120, len(modules)))
    chosen += draw.sample(headers, min(60, len(headers)))
    return [path.read_text(errors="ignore") for path in chosen]


def write(path: Path, documents: list[str], draw: random.Random) -> None:
    """Writes pieces of documents, in a random order, as JSON lines."""
    pieces = [
        document[start : start + LONGEST]
        for document in documents
        for start in range(0, len(document), LONGEST)
    ]
    draw.shuffle(pieces)
    lines = [json.dumps({"text": piece}, ensure_ascii=False) + "\n" for piece in pieces]
    path.write_text("".join(lines))
    print(f"{path}: {len(pieces):,} documents, {sum(map(len, pieces)):,} characters")


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("packages", type=Path, help="the folder that the packages lie in, unpacked")
    parser.add_argument("texts", type=Path, help="the folder to write to")
    parser.add_argument("--instructions", type=Path, help="a .json file of rows like Alpaca's")
    asked = parser.parse_args()
    draw, handbook = random.Random(0), asked.packages / HANDBOOK
    english = pages(handbook / "en-US")
    asked.texts.mkdir(parents=True, exist_ok=True)
    write(asked.texts / "code.jsonl", code(draw), draw)
    write(asked.texts / "languages.jsonl", languages(handbook, english, draw), draw)
    write(asked.texts / "technical.jsonl", technical(asked.packages, english), draw)
    if asked.instructions:
        write(asked.texts / "instructions.jsonl", instructions(asked.instructions), draw)


if __name__ == "__main__":
    main()
