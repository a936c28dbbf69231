"""A scratch folder with tiny models, texts, and what commands have made of them, among files of
somebody else; all of it is made once and put back for every case."""

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from conftest import byte_tokenizer, tiny_model
from damage import STRAY, ways
from foreign import Entry, grown, snapshot
from lines import SMALL
from processes import run

SUITE = 'title = "own"\ncontext = 32\nwindows = 2\n\n[texts.Own]\nfiles = ["test.txt"]\n'

MADE = {
    "run": ["prune", "model"],
    "recovered": ["recover", "run/keep-0.5", "--teacher", "model"],
    "comparison": ["compare", "model"],
}
"""What is there when a case begins, and the line that has made it."""

FREE = ("report.html", "checkpoint/", "compare.md", "compare.png")
"""Files that are made again from others or read no more."""


def line_of(made: str, output: str) -> list[str]:
    """The line that makes one of them, in a folder of a name."""
    front = MADE[made]
    return [*front, *SMALL[front[0]].replace("--output-dir new", f"--output-dir {output}").split()]


def _inputs(place: Path) -> None:
    """Run in a child: a parent that has computed cannot fork."""
    for name, seed in (("model", 0), ("model2", 1)):
        tiny_model("llama", seed=seed).save_pretrained(place / name)
        byte_tokenizer().save_pretrained(place / name)


def write_inputs(place: Path) -> None:
    """Two models and texts."""
    place.mkdir(parents=True)
    pid = os.fork()
    if not pid:
        _inputs(place)
        os._exit(0)
    os.waitpid(pid, 0)
    lines = [f"Line {i}: the square of {i} is {i * i}, and its cube {i**3}.\n" for i in range(120)]
    (place / "text.txt").write_text("".join(lines))
    (place / "test.txt").write_text("".join(lines[60:]))
    (place / "suite.toml").write_text(SUITE)
    rows = [{"prompt": f"{i} plus {i}?", "answer": f" {2 * i}"} for i in range(60)]
    (place / "examples.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def sprinkle(place: Path) -> None:
    """Files of somebody else, beside ours and in a run."""
    grown("everything", place / "docs")
    grown("links", place / "linked")
    for name in (".lock", ".x.tmp/thesis.txt", "notes.txt", "report.html", "new.begun/mine.txt"):
        for folder in (place, place / "run"):
            if not (folder / name).exists():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text("mine\n")


@dataclass
class World:
    """The folder, and how to put it back."""

    place: Path
    whole: Path
    foreign: dict[str, Entry] = field(default_factory=dict)
    """What is not ours."""
    right: dict[str, dict[str, str]] = field(default_factory=dict)
    """Results of lines that nothing has disturbed, by the line."""

    @classmethod
    def made(cls, root: Path) -> "World":
        """Makes it, which takes some ten seconds."""
        place, whole = root / "place", root / "whole"
        shutil.rmtree(root, ignore_errors=True)
        write_inputs(place)
        for name in MADE:
            done = run(line_of(name, name), place, adopts=True)
            assert done.code == 0, done.err
        ours = snapshot(place)
        sprinkle(place)
        shutil.copytree(place, whole, symlinks=True)
        foreign = {name: entry for name, entry in snapshot(whole).items() if name not in ours}
        return cls(place, whole, foreign)

    def fresh(self) -> None:
        """Makes the folder what it was."""
        for folder, _, _ in os.walk(self.place):
            os.chmod(folder, 0o755)
        shutil.rmtree(self.place)
        shutil.copytree(self.whole, self.place, symlinks=True)

    def harmed(self, now: dict[str, Entry]) -> list[str]:
        """Foreign names that are not as they were."""
        return [name for name, entry in self.foreign.items() if now.get(name) != entry]

    def results(self, folder: Path) -> dict[str, str]:
        """Hashes of what was made in a folder, without times and without places."""
        found = {}
        for name in snapshot(folder):
            path = folder / name
            if path.is_file() and not any(free in name for free in FREE):
                found[name] = digest(path)
        return found | {"perplexities": " ".join(perplexities(folder))}

    def undisturbed(self, line: list[str], output: str) -> dict[str, str]:
        """What a line makes where nothing disturbs it; leaves the folder as it was."""
        key = json.dumps(line)
        if key not in self.right:
            self.fresh()
            done = run(line, self.place)
            self.right[key] = self.results(self.place / output) if done.code == 0 else {}
            self.fresh()
        return self.right[key]


def digest(path: Path) -> str:
    """Hash of a file; `text` of one that holds times, or hashes of such."""
    if path.suffix in (".json", ".jsonl", ".md") or path.name in ("SHA256SUMS", ".disp-llm"):
        return "text"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def perplexities(folder: Path) -> list[str]:
    """All perplexities that a result states."""
    found = []
    for name in ("result.json", "compare.json"):
        if (folder / name).is_file():
            found += re.findall(r'"perplexity": ([0-9.e+-]+)', (folder / name).read_text())
    return sorted(found)


def damage(place: Path, random: Random) -> tuple[str, str, str]:
    """Damages one file of ours; what was made, its file, and how."""
    made = random.choice(list(MADE))
    files = [path for path in sorted((place / made).rglob("*")) if path.is_file()]
    files = [path for path in files if "mine" not in path.read_bytes()[:8].decode("latin-1")]
    path = random.choice(files)
    model = "keep-0.5" if made == "run" else "model"
    if random.random() < 0.15 and (place / made / model).is_dir():
        name = random.choice(list(STRAY))
        stray = place / made / model / name
        stray.parent.mkdir(exist_ok=True)
        stray.write_bytes(STRAY[name])
        return made, f"{model}/{name}", "put there"
    if random.random() < 0.15:
        other = random.choice(files)
        content = other.read_bytes()
        same = content == path.read_bytes()
        path.write_bytes(content)
        return made, path.relative_to(place / made).as_posix(), "same" if same else "swapped"
    how = random.choice(list(ways(path)))
    ways(path)[how](path)
    return made, path.relative_to(place / made).as_posix(), how


def change_input(place: Path, random: Random) -> str:
    """Changes a text or the model; its setting."""
    setting = random.choice(["text", "model"])
    if setting == "text":
        path = place / "text.txt"
        lines = path.read_text().splitlines(keepends=True)
        lines[random.randrange(len(lines))] = "Another line.\n"
        path.write_text("".join(lines))
    else:
        shutil.copyfile(place / "model2" / "model.safetensors", place / "model/model.safetensors")
    return setting
