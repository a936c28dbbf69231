"""Costs of a comparison's models in size, time and memory, and which are on the Pareto front.

A model is on the front of a cost if no other dominates it, that is, none is as good and as cheap
and better in one of the two. Quality is `general_ratio` if the comparison has a suite of texts,
else perplexity.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from disp_lab.names import ORIGINAL
from disp_lab.results import ComparisonFigures, ComparisonRow, comparison_figures
from disp_llm.reporting.tables import Table
from disp_llm.runs.results import PHASES, Phase
from disp_llm.runs.scores import ratio_said


@dataclass(frozen=True)
class Cost:
    """A cost that a smaller model should reduce."""

    name: str
    label: str
    """Label of its axis."""
    of: Callable[[ComparisonRow], float | None]
    """A row's cost; None if it was not measured."""
    said: Callable[[float], str]
    shown: Callable[[float], float] = float
    """A cost -> the number on its axis."""


def _of_time(phase: Phase, label: str) -> Cost:
    """The share of the original's time, shown as the speed-up that it is."""
    return Cost(
        phase,
        label,
        of=lambda row: 1 / row.speedup[phase] if row.speedup else None,
        said=lambda share: f"×{1 / share:.2f}",
        shown=lambda share: 1 / share,
    )


def _memory(row: ComparisonRow) -> float | None:
    if row.bytes is None or row.kv_cache_bytes is None:
        return None
    return (row.bytes + row.kv_cache_bytes) / 1e6


KEEP = Cost("keep", "share of block parameters", lambda row: row.keep, "{:.2f}".format)

COSTS = (
    _of_time("prefill", "times as fast, a prompt of 512 tokens"),
    _of_time("decode", "times as fast, a token after 512"),
    Cost("memory", "weights and KV cache of 512 tokens, MB", _memory, "{:.0f} MB".format),
)


@dataclass(frozen=True)
class Point:
    """One model under one cost."""

    row: ComparisonRow
    value: float
    """Its quality; less is better."""
    cost: float


@dataclass(frozen=True)
class Frontier:
    """Quality and costs of a comparison's models."""

    found: ComparisonFigures

    @classmethod
    def of(cls, result: dict[str, Any]) -> "Frontier":
        """Reads the content of `compare.json`."""
        return cls(comparison_figures(result))

    @property
    def rows(self) -> list[ComparisonRow]:
        """Rows that have figures, best first."""
        return sorted((row for row in self.found.rows if row.error is None), key=self.value)

    @property
    def value_name(self) -> str:
        """Name of the quality measure."""
        original = self.found.original
        scored = original and original.scores and original.scores.texts
        return "general_ratio" if scored else "perplexity"

    @property
    def of_original(self) -> float:
        """The quality of the original."""
        assert self.found.original is not None
        scored = self.value_name == "general_ratio"
        return 1.0 if scored else self.found.original.measured.perplexity

    def value(self, row: ComparisonRow) -> float:
        """Returns the quality of a row that has figures; less is better."""
        found = row.perplexity
        if self.value_name == "general_ratio":
            assert row.scores is not None, row
            found = row.scores.general_ratio
        assert found is not None, row
        return found

    def points(self, cost: Cost) -> list[Point]:
        """Returns all models whose cost was measured, best first."""
        costs = [(row, cost.of(row)) for row in self.rows]
        return [Point(row, self.value(row), of) for row, of in costs if of is not None]

    def front(self, cost: Cost) -> list[Point]:
        """Returns the models that no other dominates, cheapest first."""
        found: list[Point] = []
        for point in sorted(self.points(cost), key=lambda point: (point.cost, point.value)):
            last = found[-1] if found else None
            same = last and (point.value, point.cost) == (last.value, last.cost)
            if not last or point.value < last.value or same:
                found.append(point)
        return found

    def table(self) -> Table:
        """Returns a table of each model's quality, costs and fronts."""
        fronts = {cost.name: [point.row for point in self.front(cost)] for cost in COSTS}
        rows = []
        for row in self.rows:
            name = f"{row.name} ({row.note})" if row.note else row.name
            said = ratio_said(row.scores) if self.value_name == "general_ratio" else str(row)
            times = (_with_spread(row, phase) for phase in PHASES)
            sizes = (
                "–" if number is None else f"{number / 1e6:.1f}"
                for number in (row.bytes, row.kv_cache_bytes)
            )
            on = ", ".join(name for name, on_front in fronts.items() if row in on_front)
            rows.append((name, said, *times, *sizes, on))
        columns = (
            *("model", self.value_name, "prefill speed", "decode speed"),
            *("weights, MB", "KV cache, MB", "on the front of"),
        )
        return Table(columns, rows, "frontier", left=columns[-1:])


def _with_spread(row: ComparisonRow, phase: str) -> str:
    """Returns `×1.23 (1.20 to 1.25)`, median and quartiles over rounds; – if not timed."""
    if not row.speedup:
        return "–"
    ends = (row.speed.get(f"{phase}_speedup_{end}") for end in ("low", "high"))
    known = [f"{end:.2f}" for end in ends if end]
    spread = f" ({' to '.join(known)})" if len(known) == 2 else ""
    return f"×{row.speedup[phase]:.2f}{spread}"


def has_original(result: ComparisonFigures) -> bool:
    """Returns whether the original is among the rows; without it there is no frontier."""
    return any(row.method == ORIGINAL and row.error is None for row in result.rows)
