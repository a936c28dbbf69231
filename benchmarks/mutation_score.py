"""How many small changes of our code do the tests notice?

A sample of mutants (`benchmarks/mutants.py`) meets the tests that mirror its room. These are
imported and collected once and run once, to see which of them pass which changed statement; then
every mutant is a fork of that process, in which those tests run, the quick ones first, until one
fails.

    python benchmarks/mutation_score.py [--rooms masks] [--sample 60] [--again survived]

Results stand in `benchmarks/results/mutation.json`, are written mutant by mutant and gone on with;
reasons that were written there (`"equivalent": "..."`) stay. Unix only, since it forks.
"""

import argparse
import gc
import inspect
import itertools
import json
import os
import random
import resource
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from math import sqrt
from typing import Any

import pytest
from hypothesis import Phase, settings
from mutants import ROOT, SOURCES, Mutant, function_of, sample, watch

RESULTS = ROOT / "benchmarks" / "results" / "mutation.json"
WORK = ROOT / "runs" / "mutation"
ROOMS = tuple(sorted(path.parent.name for path in SOURCES.glob("*/__init__.py")))
TESTS = {room: (f"tests/{room}/",) for room in ROOMS}
TESTS["compact"] = ("tests/models/test_families.py", "tests/exporter/test_folder.py")
TESTS["masks"] += ("tests/evaluation/test_latency.py::test_what_cuts_save",)
TESTS["training"] += ("tests/commands/test_memory_plans.py::test_memory_falls",)
"""Where the tests of a room begin: those that mirror it, and of others what nothing there runs."""
ALWAYS = ("phi3",)
"""Parameters that every test is run with that has them: layers that are fused."""
OUTCOME = ("outcome", "by", "tests", "equivalent")
"""What is kept of a mutant that was met before."""
EXAMPLES = 20
"""Most that a test draws which draws its examples."""
WALL = 60
"""How many times longer than its processor a process may take: others may be busy with it."""


def run(items: list[pytest.Item], reports: list[Any]) -> Iterator[tuple[pytest.Item, float, bool]]:
    """Runs tests one by one: the test, its seconds of processor time, whether it failed."""
    for item, following in itertools.zip_longest(items, items[1:]):
        reports.clear()
        begun = time.process_time()
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        yield item, time.process_time() - begun, any(report.failed for report in reports)


def in_a_fork(work: Callable[[], Any], seconds: float) -> Any:
    """What `work` returns, in a process of its own; None if it was killed, as it is when it takes
    more than `seconds` of its processor. What it prints goes to a file."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 5))
            printed = os.open(WORK / "printed.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(printed, number)
            os.write(write, json.dumps(work()).encode())
            os._exit(0)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        late = threading.Timer(WALL * seconds, os.kill, (pid, signal.SIGKILL))
        late.start()
        found = pipe.read()
        _, status = os.waitpid(pid, 0)
        late.cancel()
    if os.WIFEXITED(status) and not found:
        raise RuntimeError((WORK / "printed.txt").read_text()[-2000:])
    return json.loads(found) if found else None


class Scoring:
    """A plugin of pytest that runs mutants in place of tests."""

    def __init__(self, mutants: list[Mutant], options: argparse.Namespace) -> None:
        self.mutants, self.options, self.reports = mutants, options, []
        self.watched: set[str] = set()

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.reports.append(report)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Notes which test passes which mutant, then lets the tests meet the mutants."""
        gc.freeze()  # or every fork would copy all that it looks at
        for room in self.options.rooms:
            tests = [item for item in session.items if item.nodeid.startswith(TESTS[room])]
            self.meet(room, self.reaching(room, chosen(tests, self.options.parameters)))
        return True

    def meet(self, room: str, reaching: dict[pytest.Item, dict[str, Any]]) -> None:
        """Runs the mutants of a room that have no outcome yet, or one that is asked for again."""
        met = 0
        for mutant in self.mutants:
            wanted = mutant.result.get("outcome") in (None, *self.options.again)
            wanted = wanted and mutant.room == room and "equivalent" not in mutant.result
            if wanted and met < self.options.most:
                met += 1
                mutant.result = self.outcome(mutant, reaching)
                print(mutant.line, mutant.key, mutant.result, file=sys.stderr, flush=True)
                write(self.mutants)

    def reaching(self, room: str, items: list[pytest.Item]) -> dict[pytest.Item, dict[str, Any]]:
        """Of every test that passes, its seconds and the mutants that it reaches; measured once, on
        unchanged code, and kept in a file."""
        path = WORK / f"reached-{room}.jsonl"
        path.touch()
        watched = WORK / f"watched-{room}.json"

        def known() -> dict[str, dict[str, Any]]:
            return {one["test"]: one for one in map(json.loads, path.read_text().splitlines())}

        def measure() -> None:
            reached: set[str] = set()
            watch(self.mutants, reached)
            watched.write_text(json.dumps([mutant.key for mutant in self.mutants]))
            with path.open("a", buffering=1) as file:
                for item, seconds, failed in run(missing, self.reports):
                    one = {"test": item.nodeid, "seconds": round(seconds, 3), "failed": failed}
                    file.write(json.dumps(one | {"mutants": sorted(reached)}) + "\n")
                    reached.clear()

        if missing := [item for item in items if item.nodeid not in known()]:
            in_a_fork(measure, 3600)
        found = known()
        self.watched = set(json.loads(watched.read_text()))
        return {
            item: found[item.nodeid]
            for item in items
            if item.nodeid in found and not found[item.nodeid]["failed"]
        }

    def outcome(self, mutant: Mutant, reaching: dict[pytest.Item, dict[str, Any]]) -> Any:
        """Whether one of the tests that reach a mutant fails under it, and which. A mutant that was
        not in the sample when that was measured meets those that reach others of its file."""
        quick_first = sorted(reaching.items(), key=lambda pair: pair[1]["seconds"])
        wholes = (mutant.key, mutant.key.split("+")[0] + "+", mutant.file + ":")
        tests: list[pytest.Item] = []
        for part in wholes[:1] if mutant.key in self.watched else wholes:
            seconds = 0.0
            for item, one in quick_first:
                passes = any(key.startswith(part) for key in one["mutants"])
                if passes and seconds < self.options.seconds:
                    tests.append(item)
                    seconds += one["seconds"]
            if tests:
                break

        def work() -> dict[str, Any]:
            function_of(mutant).__code__ = mutant.code
            for item, _, failed in run(tests, self.reports):
                if failed:
                    return {"outcome": "killed", "by": item.nodeid}
            return {"outcome": "survived", "tests": len(tests)}

        if not tests:
            return {"outcome": "not reached"}
        return in_a_fork(work, 10 * seconds + 60) or {"outcome": "timeout"}


def chosen(items: list[pytest.Item], most: int) -> list[pytest.Item]:
    """At most so many parameters of every test, evenly spaced, and few examples of those that
    draw them; without tests that start other processes, in which nothing is changed."""
    by_test: dict[str, list[pytest.Item]] = {}
    for item in items:
        if given := getattr(item.obj, "_hypothesis_internal_use_settings", None):
            item.obj._hypothesis_internal_use_settings = settings(given, max_examples=EXAMPLES)
        text = inspect.getsource(item.function)
        if not any(name in text for name in ("fresh.", "run_process", "subprocess")):
            by_test.setdefault(item.nodeid.split("[")[0], []).append(item)
    few = [one for same in by_test.values() for one in same[:: -(-len(same) // most)]]
    always = [one for one in items if one.nodeid.endswith(tuple(f"[{name}]" for name in ALWAYS))]
    return list(dict.fromkeys(few + always))


def scores(mutants: list[Mutant]) -> dict[str, dict[str, Any]]:
    """Of every room and of all: what came of its mutants, and the share that was noticed with its
    standard error; those that change nothing do not count."""
    rows = {}
    for room in (*ROOMS, "all"):
        here = [one for one in mutants if one.result and room in (one.room, "all")]
        counted = Counter(
            "equivalent" if "equivalent" in one.result else one.result["outcome"] for one in here
        )
        whole = len(here) - counted["equivalent"]
        share = (counted["killed"] + counted["timeout"]) / max(whole, 1)
        error = sqrt(share * (1 - share) / max(whole, 1))
        rows[room] = dict(counted) | {"score": round(share, 3), "stderr": round(error, 3)}
    return rows


def write(mutants: list[Mutant]) -> None:
    """Replaces the file of results by what is known now."""
    shown = ("file", "line", "function", "operator", "before", "after")
    rows = [
        {name: getattr(one, name) for name in shown} | {"key": one.key} | one.result
        for one in mutants
        if one.result
    ]
    from disp_llm.runs.provenance import hardware  # not before the tests check its shapes

    made = {"date": time.strftime("%Y-%m-%d"), "cpu": hardware()["cpu"]}
    whole = made | {"command": " ".join(sys.argv), "scores": scores(mutants), "mutants": rows}
    unfinished = RESULTS.with_suffix(".part")
    unfinished.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    unfinished.replace(RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rooms", nargs="+", default=ROOMS, choices=ROOMS)
    parser.add_argument("--sample", type=int, default=12, help="mutants of a room")
    parser.add_argument("--most", type=int, default=10**9, help="mutants of a room in this run")
    parser.add_argument("--parameters", type=int, default=8, help="most that a test is run with")
    parser.add_argument("--seconds", type=float, default=20.0, help="of tests that a mutant meets")
    parser.add_argument(
        "--again", nargs="*", default=[], help="mutants of this outcome are run again"
    )
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    mutants = [mutant for room in ROOMS for mutant in sample(room, options.sample)]
    random.Random(0).shuffle(mutants)  # so that the first ones are a sample too
    if RESULTS.exists():
        before = {one["key"]: one for one in json.loads(RESULTS.read_text())["mutants"]}
        for mutant in mutants:
            one = before.get(mutant.key, {})
            mutant.result = {name: one[name] for name in OUTCOME if name in one}
    flags = "-q -s -W ignore::pytest.PytestAssertRewriteWarning -p no:randomly -p no:cacheprovider"
    quick = (Phase.explicit, Phase.generate)  # a failure need not be the smallest
    settings.register_profile("mutants", database=None, derandomize=True, phases=quick)
    settings.load_profile("mutants")
    tests = dict.fromkeys(part.split("::")[0] for room in options.rooms for part in TESTS[room])
    os.chdir(ROOT)
    flags += f" --timeout 0 --basetemp {WORK / 'tests'}"
    pytest.main([*flags.split(), *tests], [Scoring(mutants, options)])
    print(json.dumps(scores(mutants), indent=1))


if __name__ == "__main__":
    main()
