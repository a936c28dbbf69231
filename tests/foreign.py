"""What lies on a disk and is not ours: trees that no command may change, and what one looks like
before and after.

The names by which a folder or a file is known to be ours stand here, and nowhere else in the tests
of damage and of foreign trees.
"""

import os
from collections.abc import Callable
from pathlib import Path

MARK = ".disp-llm"
"""Name of the file that says that a folder is ours."""

LOCK = f"{MARK}.lock"
"""Name of the file that is locked in a run folder."""

STRANGE_ID = "0f" * 16
"""The id of somebody else's run."""

Entry = tuple[str, int, bytes]
"""Kind, mode, and content or target of what bears a name."""


def snapshot(folder: Path) -> dict[str, Entry]:
    """Everything in a folder by its name: content, mode, targets of links; links are not followed.

    Where the folder itself is missing, nothing.
    """
    found = {}
    for above, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(above) / name
            found[path.relative_to(folder).as_posix()] = _entry(path)
    return found


def _entry(path: Path) -> Entry:
    mode = path.lstat().st_mode
    if path.is_symlink():
        return "link", 0, os.fsencode(os.readlink(path))
    if path.is_dir():
        return "folder", mode, b""
    return "file", mode, path.read_bytes() if path.is_file() else b""


def changes(before: dict[str, Entry], after: dict[str, Entry]) -> list[str]:
    """What has become of what was there, and what is there now that was not."""
    gone = [f"{name} is gone" for name in before.keys() - after.keys()]
    made = [f"{name} is new" for name in after.keys() - before.keys()]
    other = [
        f"{name} changed" for name in before.keys() & after.keys() if before[name] != after[name]
    ]
    return sorted(gone + made + other)


def left_over(folder: Path) -> list[str]:
    """What is there only while a command works, or after one was killed."""
    names = snapshot(folder)
    return [name for name in names if name.rsplit("/", 1)[-1].startswith((f"{MARK}-", LOCK))]


def _write(*names: str, content: str = "mine\n") -> Callable[[Path], None]:
    """Grows files of these names; one that ends in / is an empty folder."""

    def grow(folder: Path) -> None:
        for name in names:
            path = folder / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.write_text(content)

    return grow


def _links(folder: Path) -> None:
    """To files and folders inside and outside, and to nothing."""
    outside = folder.parent / "outside"
    (outside / ".kept.tmp").mkdir(parents=True, exist_ok=True)
    (outside / ".kept.tmp" / "thesis.txt").write_text("mine\n")
    (outside / "model.safetensors").write_bytes(b"weights")
    (folder / "own.txt").write_text("mine\n")
    targets = {
        "own": "own.txt",
        "model": outside,
        "report.html": outside / "model.safetensors",
        "result.json": "nowhere.json",
        ".loop.tmp": outside / ".kept.tmp",
        "compare.png": "nowhere.png",
    }
    for name, target in targets.items():
        (folder / name).symlink_to(target)


def _read_only(folder: Path) -> None:
    _write("a.txt", "deep/b.txt", ".c.tmp/d")(folder)
    for name, mode in (("a.txt", 0o444), ("deep/b.txt", 0o400), (".c.tmp/d", 0o444)):
        (folder / name).chmod(mode)
    (folder / "deep").chmod(0o555)


def _all(folder: Path) -> None:
    for name, grow in TREES.items():
        if name not in ("everything", "links", "folder for a mark"):
            grow(folder)


TREES: dict[str, Callable[[Path], None]] = {
    "plain": _write("main.py", "notes/a.md", "data/deep/b.csv", "none"),
    "links": _links,
    "lock": _write(".lock", "main.py"),
    "tmp": _write(".x.tmp/thesis.txt", ".model.ab12.tmp/model/config.json", "x.tmp", ".y.tmp/"),
    "tmp alone": _write(".cache.tmp/thesis.txt"),
    "hidden": _write(".git/HEAD", ".cache/.deep/.x.tmp/a", ".env", ".hidden/"),
    "page": _write("report.html", content="<!doctype html><title>Sales</title>"),
    "result": _write("result.json", "config.toml", "metrics.jsonl", content="{}\n"),
    "config": _write("config.json", "README.md", "SHA256SUMS", content="{}\n"),
    "weights": _write("model/model.safetensors", "model/config.json", "selection.safetensors"),
    "comparison": _write("compare.md", "compare.png", "frontier.png", "magnitude/config.toml"),
    "compare.json": _write("compare.json", content="{}\n"),
    "sizes": _write("keep-0.6/mine.txt", "keep-0.5/config.json", "checkpoint/.x.tmp/a"),
    "lookalikes": _write(
        f"{MARK}-{STRANGE_ID}-model.x/a", f"{MARK}-x/b", f"{MARK}.txt", ".disp-llm~", ".Disp-llm-a"
    ),
    "no mark": _write(f"{MARK}", "a.txt", content="mine\n"),
    "mark of nothing": _write(f"{MARK}", ".a.tmp/b", LOCK, content="{}\n"),
    "folder for a mark": _write(f"{MARK}/a", f"{MARK}-{STRANGE_ID}-b/c"),
    "read only": _read_only,
    "everything": _all,
}
"""How to grow each tree in an empty folder."""


def grown(kind: str, folder: Path) -> Path:
    """The folder with a tree in it; what its links point at lies beside it."""
    folder.mkdir(parents=True)
    TREES[kind](folder)
    return folder
