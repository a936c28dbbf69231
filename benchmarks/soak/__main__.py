"""Random commands, kills, damage and changed inputs on tiny models, against what must always hold:

nothing of somebody else has changed; no traceback; exit code 0 or 2, or that of the signal that was
sent; the same bits after a kill as without; no damage that `verify` does not name.

    make soak MINUTES=30
    python benchmarks/soak --seed 1 --case 17     # one case again, with all that it does

Every case is drawn from the seed and its number. What breaks a rule is appended to
`runs/soak/findings.jsonl`. Unix only, since it forks.
"""

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests")]

import world as worlds  # noqa: E402
from foreign import snapshot  # noqa: E402
from lines import random_line  # noqa: E402
from processes import Done, import_all, run  # noqa: E402
from world import MADE, World, line_of  # noqa: E402

from disp_llm.runs.ownership import LOCK, MARK  # noqa: E402

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ALLOWED = {
    0: {0, 2},
    signal.SIGKILL: {0, 2, -signal.SIGKILL},
    signal.SIGTERM: {0, 2, 1, 130, -signal.SIGTERM},
    signal.SIGINT: {0, 2, 130, -signal.SIGINT},
}
"""Exit codes, by the signal that was sent."""

KILLED = [
    ["prune", "model"],
    ["prune", "model", "--seed", "1"],
    ["recover", "run/keep-0.5", "--teacher", "model"],
    ["recover", "run/keep-0.5", "--teacher", "model"],
    ["compare", "model"],
    ["convert", "run/keep-0.5", "--to", "folder", "--output-dir", "new"],
    ["convert", "run/keep-0.5", "--to", "int8", "--output-dir", "new"],
]
"""Lines that are killed and must then give what they give undisturbed."""

READERS = [
    *(["verify", "{made}"], ["report", "{made}", "--output", "new.html"]),
    *(["verify", "{made}/{model}"], ["eval", "{made}/{model}", "--text", "text.txt"]),
    *(["convert", "{made}/{model}", "--to", "folder", "--output-dir", "new"], ["again"]),
]
"""Lines that read what was damaged."""


@dataclass
class Soak:
    """The cases of one seed, and what they have found."""

    world: World
    seed: int
    file: Path
    shows: bool = False
    counts: Counter = field(default_factory=Counter)
    found: Counter = field(default_factory=Counter)
    case: int = 0

    def find(self, what: str, line: list[str], said: str = "") -> None:
        """Writes down what broke a rule."""
        kind = ": ".join(what.split(":")[: 2 if what.startswith("traceback") else 1])
        self.found[f"{kind} ({line[0]})"] += 1
        entry = {"seed": self.seed, "case": self.case, "what": what}
        entry |= {"command": f"disp-llm {shlex.join(line)}", "said": said[-1200:]}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def run(self, line: list[str], number: int = 0, after: float = 0.0) -> Done:
        """Runs a command and holds it against the rules."""
        self.counts["commands"] += 1
        before = snapshot(self.world.place)
        done = run(line, self.world.place, number, after)
        self.counts["kills"] += bool(done.sent)
        if self.shows:
            print(f"{done.code:4} {done.seconds:5.1f} s  {shlex.join(line)}\n{done.err[-500:]}")
        now = snapshot(self.world.place)
        said = done.out[-300:] + done.err
        if harmed := self.world.harmed(now):
            self.find(f"foreign files changed: {harmed[:5]}", line, said)
            self.world.foreign = {k: v for k, v in self.world.foreign.items() if k not in harmed}
        # Python itself drops a Ctrl-C that comes while something is being freed, and says so.
        dropped = number == signal.SIGINT and "Exception ignored in" in said
        if ("Traceback" in said and not dropped) or "Fatal Python" in said:
            self.find(f"traceback: {said.strip().splitlines()[-1][:160]}", line, said)
        elif done.hung:
            self.find("hangs", line, said)
        elif done.code not in ALLOWED[done.sent]:
            self.find(f"exit code {done.code} after signal {done.sent}", line, said)
        elif done.code == 2:
            self._require_one_line(done, said)
            if not done.sent:
                self._require_untouched(line, before, now, said)
        return done

    def _require_one_line(self, done: Done, said: str) -> None:
        """A refusal is a last line of ours that names something and says what to do."""
        lines = [part for part in done.err.splitlines() if part.strip()]
        if done.line[0] != "verify" and not (lines and lines[-1].startswith("disp-llm: ")):
            self.find("refused in other than one line", done.line, said)
        if any(not (letter.isprintable() or letter in "\n\r") for letter in done.err):
            self.find("control characters on the terminal", done.line, said)

    def _require_untouched(self, line: list[str], before: dict, now: dict, said: str) -> None:
        """A refused command leaves no folders, and nothing changed but a run that goes on."""
        resumes = "--resume" in line
        new = [name for name in now.keys() - before.keys() if now[name][0] == "folder"]
        begun = any(name.endswith(("result.json", "compare.json")) for name in now.keys() - before)
        if new and not begun and not resumes:
            self.find(f"refused and left folders: {sorted(new)[:4]}", line, said)
        changed = [name for name in before if name in now and before[name] != now[name]]
        gone = before.keys() - now.keys()
        marks = {name for name in gone if Path(name).name in (MARK, LOCK)}
        empty = {Path(name).parent.as_posix() for name in marks}  # killed before it had begun
        if (gone := gone - marks - empty) and not resumes:
            self.find(f"refused and removed: {sorted(gone)[:4]}", line, said)
        if changed and not resumes and line[0] not in ("compare", "export"):
            self.find(f"refused and changed: {sorted(changed)[:4]}", line, said)

    def any_command(self, random: Random) -> None:
        """Up to three commands of any kind, of which one may be killed."""
        for _ in range(random.randint(1, 3)):
            number = random.choice(SIGNALS) if random.random() < 0.15 else 0
            self.run(random_line(random), number, random.uniform(0, 0.8))

    def killed(self, random: Random) -> None:
        """A command that is killed up to three times ends with the bits of an undisturbed one."""
        front = random.choice(KILLED)
        made = {"prune": "run", "recover": "recovered", "compare": "comparison"}.get(front[0])
        line = [*front, *line_of(made, "new")[len(MADE[made]) :]] if made else front
        right = self.world.undisturbed(line, "new")
        resume = ["--resume", "auto"] if front[0] in ("prune", "recover") else []
        self.world.fresh()
        for _ in range(random.randint(1, 3)):
            self.run([*line, *resume], random.choice(SIGNALS), random.uniform(0, 0.9))
        done, output = self.run([*line, *resume]), self.world.place / "new"
        if done.code != 0 and not (not made and output.exists()):
            self.find(f"does not go on after kills: exit {done.code}", line, done.err)
            return
        if self.world.results(output) != right:
            found = self.world.results(output)
            other = sorted(n for n in found.keys() | right.keys() if found.get(n) != right.get(n))
            self.find(f"other bits after kills: {other[:5]}", line, done.err)
        verified = self.run(["verify", "new"])
        if verified.code != 0:
            self.find("verify refuses what was killed and finished", line, verified.err)
        left = [
            n for n in snapshot(self.world.place) if _is_left(n) and n not in self.world.foreign
        ]
        if left:
            self.find(f"temporary files stay: {left[:3]}", line)

    def damaged(self, random: Random) -> None:
        """A damaged file is named by `verify`, and by others or changes nothing."""
        made, name, how = worlds.damage(self.world.place, random)
        self.counts["damages"] += 1
        told, mended = f"{made}/{name} {how}", False
        for reader in random.sample(READERS, 3):
            model = "keep-0.5" if made == "run" else "model"
            line = [word.format(made=made, model=model) for word in reader]
            if reader == ["again"]:
                line = line_of(made, made) + ([] if made == "comparison" else ["--resume"])
            elif made == "comparison" and line[1].endswith("/model"):
                continue
            done = self.run(line)
            free = any(one in name for one in worlds.FREE) or how == "same"
            if line == ["verify", made] and done.code == 0 and not free and not mended:
                self.find(f"silent: verify says whole: {told}", line, done.err)
            listed = name.startswith(("model/", "keep-0.5/")) and how not in ("same", "put there")
            reads = name.endswith(("model.safetensors", "config.json", "tokenizer.json"))
            taken = line[0] == "convert" or (line[0] == "eval" and reads)
            if taken and listed and done.code == 0 and "README" not in name and not mended:
                self.find(f"silent: takes a damaged folder: {told}", line, done.err)
            mended = mended or reader == ["again"]  # which may have made the file again

    def changed(self, random: Random) -> None:
        """A finished run or comparison whose inputs have changed is refused."""
        made = random.choice(list(MADE))
        setting = worlds.change_input(self.world.place, random)
        self.counts["changed inputs"] += 1
        line = line_of(made, made) + ([] if made == "comparison" else ["--resume", "auto"])
        done = self.run(line)
        if done.code == 0:
            self.find(f"silent: {setting} of {made} has changed", line, done.err)

    def one(self, number: int) -> None:
        """One case."""
        self.case = number
        random = Random(f"{self.seed} {number}")
        self.world.fresh()
        kinds = (self.any_command, self.killed, self.damaged, self.changed)
        random.choices(kinds, (10, 2, 4, 1))[0](random)


def _is_left(name: str) -> bool:
    """Whether a file has the look of what is there only while a command works."""
    last = name.rsplit("/", 1)[-1]
    return last.startswith(".") and (last.endswith((".tmp", ".lock")) or ".disp-llm-" in last)


def main() -> None:
    """Runs cases on every core until the time is over; exit code 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--case", type=int, help="run this one alone and show it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "soak")
    asked = parser.parse_args()
    import_all()
    asked.folder.mkdir(parents=True, exist_ok=True)
    for old in asked.folder.glob("summary-*.json"):
        old.unlink()
    ends = time.monotonic() + 60 * asked.minutes
    jobs = asked.jobs if asked.case is None else 1
    first, pids = _parted(jobs)
    soak = Soak(
        World.made((asked.folder / f"world-{first}").resolve()), asked.seed,
        asked.folder / "findings.jsonl", asked.case is not None,
    )  # fmt: skip
    foreign = dict(soak.world.foreign)
    number = first if asked.case is None else asked.case
    while True:
        soak.world.foreign = dict(foreign)
        soak.one(number)
        number += jobs
        if asked.case is not None or time.monotonic() > ends:
            break
    summary = asked.folder / f"summary-{first}.json"
    summary.write_text(json.dumps({"counts": soak.counts, "found": soak.found}))
    if first:
        os._exit(0)
    for pid in pids:
        os.waitpid(pid, 0)
    _summarise(asked.folder, jobs, asked.seed)


LOST = {"counts": {}, "found": {"a process of the soak itself has ended": 1}}
"""What is said of a process that has left no summary."""


def _parted(jobs: int) -> tuple[int, list[int]]:
    """Becomes so many processes; the number of this one, and in the first the others."""
    pids = []
    for job in range(1, jobs):
        pid = os.fork()
        if not pid:
            return job, []
        pids.append(pid)
    return 0, pids


def _summarise(folder: Path, jobs: int, seed: int) -> None:
    counts: Counter = Counter()
    found: Counter = Counter()
    for job in range(jobs):
        path = folder / f"summary-{job}.json"
        one = json.loads(path.read_text()) if path.exists() else LOST
        counts.update(one["counts"])
        found.update(one["found"])
    print(f"seed {seed}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    for what, count in found.most_common():
        print(f"{count:5}  {what}")
    print(f"{found.total()} findings" + (f": {folder / 'findings.jsonl'}" if found else ""))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
