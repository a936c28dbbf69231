"""What each model of a comparison costs in time and memory -> who is dominated, in words.

A model dominates another that is no better and no cheaper than it, and worse in one of the two; the
front of a cost is what nothing dominates. Quality is `general_ratio` where the comparison has a
suite of texts, else perplexity.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from disp_lab.names import DENSE, OURS
from disp_lab.results import ComparisonFigures, ComparisonRow, comparison_figures
from disp_llm.runs.markdown import escaped, table_row
from disp_llm.runs.results import PHASES, ratio_said


@dataclass(frozen=True)
class Cost:
    """Something that a smaller model is to save."""

    name: str
    label: str
    """What an axis of it says."""
    of: Callable[[ComparisonRow], float | None]
    """None where it was not measured."""
    said: Callable[[float], str]


def _memory(row: ComparisonRow) -> float | None:
    if row.bytes is None or row.kv_cache_bytes is None:
        return None
    return (row.bytes + row.kv_cache_bytes) / 1e6


def _share_of_time(row: ComparisonRow, phase: str) -> float | None:
    return 1 / row.speedup[phase] if row.speedup else None


def _speedup(share_of_time: float) -> str:
    return f"×{1 / share_of_time:.2f}"


COSTS = (
    Cost(
        "prefill",
        "time of a prompt of 512 tokens, share of the original's",
        lambda row: _share_of_time(row, "prefill"),
        _speedup,
    ),
    Cost(
        "decode",
        "time of a token after 512, share of the original's",
        lambda row: _share_of_time(row, "decode"),
        _speedup,
    ),
    Cost("memory", "weights and KV cache of 512 tokens, MB", _memory, "{:.0f} MB".format),
)


@dataclass(frozen=True)
class Point:
    """One model under one cost."""

    row: ComparisonRow
    value: float
    """Its quality; less is better."""
    cost: float

    def dominates(self, other: "Point") -> bool:
        """Whether it is as good and as cheap, and better in one of the two."""
        mine, its = (self.value, self.cost), (other.value, other.cost)
        return mine != its and mine[0] <= its[0] and mine[1] <= its[1]


@dataclass(frozen=True)
class Frontier:
    """A comparison whose models have costs."""

    found: ComparisonFigures

    @classmethod
    def of(cls, result: dict[str, Any]) -> "Frontier":
        """What `compare.json` holds.

        Raises:
            InputError: a value is missing, or is of another type.
        """
        return cls(comparison_figures(result))

    @property
    def rows(self) -> list[ComparisonRow]:
        """Those that have figures, the best first."""
        return sorted((row for row in self.found.rows if row.error is None), key=self.value)

    @property
    def value_name(self) -> str:
        """What quality is measured by."""
        dense = self.found.dense
        return "general_ratio" if dense and dense.scores and dense.scores.texts else "perplexity"

    def value(self, row: ComparisonRow) -> float:
        """The quality of a row that has figures; less is better."""
        found = row.perplexity
        if self.value_name == "general_ratio":
            assert row.scores is not None, row
            found = row.scores.general_ratio
        assert found is not None, row
        return found

    def said(self, row: ComparisonRow) -> str:
        """The quality of a row with its standard error."""
        return ratio_said(row.scores) if self.value_name == "general_ratio" else str(row)

    def points(self, cost: Cost) -> list[Point]:
        """All models whose cost was measured, the best first."""
        costs = [(row, cost.of(row)) for row in self.rows]
        return [Point(row, self.value(row), of) for row, of in costs if of is not None]

    def front(self, cost: Cost) -> list[Point]:
        """Those that nothing dominates, the cheapest first."""
        points = self.points(cost)
        best = [one for one in points if not any(other.dominates(one) for other in points)]
        return sorted(best, key=lambda point: point.cost)

    def dominated(self, cost: Cost) -> list[tuple[Point, Point]]:
        """The others, each with the best model that dominates it."""
        points = self.points(cost)
        pairs = ((one, next((p for p in points if p.dominates(one)), None)) for one in points)
        return [(one, better) for one, better in pairs if better is not None]

    def ours_beside(self, cost: Cost) -> list[tuple[Point, Point | None]]:
        """Every model of another method, and what to take in its place: the best of ours, or of the
        original in fewer bits, that costs as much or less."""
        points = self.points(cost)
        quantised = [one for one in points if one.row.method == DENSE and one.row.weights]
        own = [one for one in points if one.row.method in OURS or one in quantised]
        others = [one for one in points if one.row.method not in (*OURS, DENSE)]
        return [
            (other, next((one for one in own if one.cost <= other.cost), None)) for other in others
        ]

    def sentences(self) -> list[str]:
        """For each cost which models are on the front, and which are dominated by what."""
        lines = []
        for cost in COSTS:
            front = self.front(cost)
            if not front:
                continue
            names = ", ".join(f"{p.row.name} ({cost.said(p.cost)})" for p in front)
            lines.append(f"{cost.name}, on the Pareto front: {names}.")
            by: dict[str, list[ComparisonRow]] = {}
            for point, better in self.dominated(cost):
                by.setdefault(better.row.name, []).append(point.row)
            said = "; ".join(f"{named_together(rows)} by {better}" for better, rows in by.items())
            lines += [f"{cost.name}, dominated: {said}."] if said else []
        left_out: dict[str, list[ComparisonRow]] = {}
        for row in self.rows:
            if not row.speedup:
                left_out.setdefault(row.note or "not timed", []).append(row)
        lines += [f"without a time: {named_together(of)}: {why}." for why, of in left_out.items()]
        return lines


def named_together(rows: list[ComparisonRow]) -> str:
    """`flap keep 0.8 / 0.5, dense int8`: the names of rows, sizes of one method together."""
    methods: dict[tuple[str, str], list[ComparisonRow]] = {}
    for row in rows:
        methods.setdefault((row.method, row.weights), []).append(row)
    found = []
    for (_, weights), of_method in methods.items():
        first, *more = (row.name.removesuffix(weights).strip() for row in of_method)
        sizes = " / ".join([first, *(name.rpartition(" ")[2] for name in more)])
        found.append(f"{sizes} {weights}".strip())
    return ", ".join(found)


HEADINGS = (
    "prefill speed",
    "decode speed",
    "weights, MB",
    "KV cache, MB",
    "on the front of",
)
"""Columns of `table` after the name and the quality."""


def table(frontier: Frontier) -> list[tuple[str, ...]]:
    """For every model its name, its quality, what it costs, and on which fronts it is."""
    fronts = {cost.name: [point.row for point in frontier.front(cost)] for cost in COSTS}
    found: list[tuple[str, ...]] = []
    for row in frontier.rows:
        times = (_with_spread(row, phase) for phase in PHASES)
        sizes = (
            "–" if number is None else f"{number / 1e6:.1f}"
            for number in (row.bytes, row.kv_cache_bytes)
        )
        on = ", ".join(name for name, rows in fronts.items() if row in rows)
        name = f"{row.name} ({row.note})" if row.note and row.weights else row.name
        found.append((name, frontier.said(row), *times, *sizes, on))
    return found


def _with_spread(row: ComparisonRow, phase: str) -> str:
    """`×1.23 (1.20 to 1.25)`: median and quartiles over rounds."""
    if not row.speedup:
        return "–"
    ends = (row.speed.get(f"{phase}_speedup_{end}") for end in ("low", "high"))
    known = [f"{end:.2f}" for end in ends if end]
    spread = f" ({' to '.join(known)})" if len(known) == 2 else ""
    return f"×{row.speedup[phase]:.2f}{spread}"


def frontier_lines(result: dict[str, Any]) -> list[str]:
    """The table and the sentences as Markdown; no line where no original stands among the rows.

    Args:
        result: what `compare.json` holds.
    """
    frontier = Frontier.of(result)
    if not any(row.method == DENSE for row in frontier.rows):
        return []
    columns = ("model", frontier.value_name, *HEADINGS)
    lines = [table_row(columns), "|---|" + "---:|" * (len(columns) - 2) + "---|"]
    lines += map(table_row, table(frontier))
    return [*lines, "", *(f"- {escaped(sentence)}" for sentence in frontier.sentences())]
