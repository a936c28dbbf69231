"""Something that commands have written, one file of which is damaged, and the rule that commands
which read it must keep."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from conftest import run_command
from damage import ways
from foreign import Entry, snapshot

FREE = ("report.html", "checkpoint/", "compare.md", "compare.png", "frontier")
"""What is made again from other files, or read no more: nothing is recorded of it."""

RESULTS = ("safetensors", "config.json", ".py", "tokenizer.json")
"""Endings of files that hold no times."""

EDITED = "README.md"
"""The card, which people edit: only `verify` says so."""


@dataclass
class World:
    """Something that commands have written, and what commands that read it must give."""

    whole: Path
    place: Path
    """Where a copy of it is damaged."""
    commands: dict[str, Callable[[Path], list[Any]]]
    """Lines that read the folder and write, if anything, to `made` beside it."""
    made: tuple[str, ...] = ()
    """Files of the folder whose content is a result."""
    right: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.place / "folder"

    @cached_property
    def before(self) -> dict[str, Entry]:
        return snapshot(self.whole)

    def cases(self, every: int = 1, first: int = 0) -> Iterator[tuple[Path, str]]:
        """Every file with all that can become of it; of these, one of `every`."""
        self.fresh()
        found = [
            (path, how)
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
            for how in ways(path)
        ]
        yield from found[first % every :: every]

    def fresh(self) -> None:
        """Makes the copy what the original is."""
        shutil.rmtree(self.place / "made", ignore_errors=True)
        self.folder.mkdir(exist_ok=True)
        now, before = snapshot(self.folder), self.before
        wrong = [n for n in sorted(now | before) if now.get(n) != before.get(n)]
        for name in reversed(wrong):
            path = self.folder / name
            if name in now:
                path.rmdir() if now[name][0] == "folder" else path.unlink()
        for name in wrong:
            path = self.folder / name
            if name in before:
                path.mkdir() if before[name][0] == "folder" else shutil.copy2(
                    self.whole / name, path
                )

    def read(self, command: str) -> tuple[Any, str]:
        """The result of a command, None where it was refused; and what it said."""
        done = run_command(*self.commands[command](self.folder))
        said = done.stdout + done.stderr
        lines = [line for line in done.stderr.splitlines() if line.startswith("disp-llm: ")]
        if "Traceback" in said or done.returncode not in (0, 2):
            return f"exit {done.returncode}: {said[-300:]}", said
        if done.returncode == 2:
            return (None if len(lines) == 1 else f"{len(lines)} lines: {said}"), said
        return self._results(), said

    def _results(self) -> dict[str, str]:
        made = self.place / "made"
        found = {name: made / name for name in snapshot(made) if name.endswith(RESULTS)}
        found = {name: path for name, path in found.items() if "checkpoint" not in name}
        found |= {name: self.folder / name for name in self.made}
        if made.is_file():
            found["made"] = made
        return {name: _digest(path) for name, path in found.items() if path.is_file()}

    def wrong(self, command: str, path: Path, how: str, change: Callable[[Path], None]) -> str:
        """What a command does otherwise than by the rule; empty if nothing."""
        if command not in self.right:
            self.fresh()
            self.right[command], said = self.read(command)
            assert isinstance(self.right[command], dict), said
            assert self.right[command].keys() >= {*self.made}, "a result that is not there"
        self.fresh()
        change(path)
        found, said = self.read(command)
        place, right = path.relative_to(self.folder), self.right[command]
        if path.name == EDITED and (found is None or isinstance(found, dict)):
            return ""
        if found == right or (found is None and names(said, path, self.folder)):
            return ""
        return (
            f"{command} of {place} {how}: {'silent' if isinstance(found, dict) else found or said}"
        )

    def unnamed(self, path: Path, how: str, change: Callable[[Path], None]) -> str:
        """What `verify` does otherwise than to name the damage."""
        self.fresh()
        change(path)
        done = run_command("verify", self.folder, "--json")
        place = path.relative_to(self.folder)
        if "Traceback" in done.stderr or done.returncode not in (0, 2):
            return f"verify of {place} {how}: {done.stderr[-300:]}"
        told = json.loads(done.stdout)
        files = {Path(one["file"]) for one in told.get("problems", [])} | {
            Path(told.get("field", ""))
        }
        if (done.returncode == 2 and files & {path, path.parent}) or any(
            free in place.as_posix() for free in FREE
        ):
            return ""
        return f"verify of {place} {how}: exit {done.returncode}, {done.stdout[:300]}"


def names(said: str, path: Path, folder: Path) -> bool:
    """Whether a message names a file: by its path, by its name, or by the model folder it is in."""
    is_of_model = path.parent != folder or not (folder / "result.json").exists()
    return path.name in said or (is_of_model and str(path.parent) in said)


def _digest(path: Path) -> str:
    """Of what a file holds, without times."""
    content = path.read_bytes()
    if path.suffix == ".jsonl":
        content = re.sub(rb'"tokens_per_s": [^,}]+', b"", content)
    return hashlib.sha256(content).hexdigest()
