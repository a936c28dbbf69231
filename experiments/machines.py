"""What committed results were measured on, and with what.

A column of times is of one machine: where rows come from several, each has a column of its own.
"""

from dataclasses import dataclass
from string import ascii_uppercase

from disp_lab.results import machine_name

SHORT = 12
"""Letters of a commit that are printed."""
NAMED = ("torch", "transformers", "torchao")
"""Packages whose versions are printed; results have more."""


@dataclass(frozen=True)
class Times:
    """The columns of seconds of a table of results."""

    machines: list[str]
    """A column each."""

    @classmethod
    def of(cls, results: list[dict]) -> "Times":
        """Of all that have finished, in the order in which they stand."""
        done = [result for result in results if "error" not in result]
        return cls(list(dict.fromkeys(machine(result) for result in done)))

    @property
    def columns(self) -> list[str]:
        """`s`, or `s, A` and `s, B`."""
        if len(self.machines) < 2:
            return ["s"]
        return [f"s, {letter}" for letter in ascii_uppercase[: len(self.machines)]]

    def cells(self, result: dict) -> list[str]:
        """The seconds of a result in the column of its machine; blank in the others."""
        mine = machine(result)
        return [f"{result['seconds']:.0f}" if name == mine else "" for name in self.machines]

    @property
    def machines_said(self) -> str:
        """All machines in a sentence."""
        return f"On {'; '.join(self.machines)}."

    @property
    def note(self) -> str:
        """Which machine each letter is; empty where there is one machine."""
        if len(self.machines) < 2:
            return ""
        named = zip(ascii_uppercase, self.machines, strict=False)
        return f"Seconds are of {'; '.join(f'{letter}: {name}' for letter, name in named)}."


def machine(result: dict) -> str:
    """`AMD EPYC, 2 threads`; of a run that went on elsewhere, both."""
    attempts = [result, *result.get("resumed", [])]
    return ", then ".join(dict.fromkeys(machine_name(attempt["hardware"]) for attempt in attempts))


def origins(results: list[dict]) -> str:
    """Machine and versions and, of each, every commit, seed and date that results have; what was
    not recorded is said to be unknown."""
    found: dict[str, list[str]] = {}
    for result in results:
        versions = ", ".join(
            f"{name} {number}" for name, number in result["versions"].items() if name in NAMED
        )
        commit = result.get("commit") or "unknown"
        commit = commit[:SHORT] + "-dirty" * commit.endswith("-dirty")
        seed, date = result.get("seed", "unknown"), result.get("date", "unknown")[:10]
        run = f"commit {commit}, seed {seed}, date {date}"
        runs = found.setdefault(f"{machine(result)}: {versions}", [])
        if run not in runs:
            runs.append(run)
    return " ".join(f"{made_on}; {'; '.join(runs)}." for made_on, runs in found.items())


def origin_of_rows(comparison: dict) -> str:
    """The same of a comparison, whose rows know it each."""
    told = [row["provenance"] for row in comparison["rows"] if "provenance" in row]
    if len(told) < len(comparison["rows"]):
        told = [{key: comparison[key] for key in ("hardware", "versions")}, *told]
    return origins(told)
