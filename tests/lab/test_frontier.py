"""Who is dominated in time and memory: found, said and drawn."""

from dataclasses import replace

import pytest

from disp_lab.reporting import plots
from disp_lab.reporting.frontier import COSTS, Frontier
from disp_lab.reporting.tables import markdown
from disp_lab.results import ComparisonRow, OriginalResult
from disp_llm.runs.results import as_json
from disp_llm.runs.scores import Perplexity, Scores, TextScore

PREFILL, DECODE, MEMORY = COSTS


def row(
    method: str, keep: float | None, perplexity: float, time: float | None, size: float, **more
) -> ComparisonRow:
    """A model that takes such a share of the original's time, and so many MB."""
    speed = {} if time is None else {
        f"{phase}_{name}": value / time
        for phase in ("prefill", "decode")
        for name, value in (("ms", time), ("speedup", 1), ("speedup_low", 0.9), ("speedup_high", 2))
    }  # fmt: skip
    return ComparisonRow(
        method, keep, perplexity, 0.5, keep or 0.5, 80, 90, 0.5, 960, 1.5, speed=speed,
        bytes=None if time is None else int(size * 1e6), kv_cache_bytes=0, **more,
    )  # fmt: skip


ROWS = [
    row("original", 1.0, 20.0, 1.0, 270),
    row("original", 1.0, 21.0, 1.5, 120, weights="int8"),
    row("learned", 0.8, 24.0, 0.9, 230),
    row("learned", 0.5, 50.0, 0.7, 160),
    row("learned", 0.5, 51.0, 0.8, 100, weights="int8", note="2 layers stay as they are"),
    row("latency", None, 30.0, 0.8, 220, target=0.8),
    row("flap", 0.8, 40.0, 0.8, 230),
    row("flap", 0.5, 70.0, 0.6, 160),
    row("wanda_2_4", 0.5, 60.0, None, 0, note="zeros"),
]


def compared(rows: list[ComparisonRow], scores: Scores | None = None) -> dict:
    original = OriginalResult(Perplexity(20.0, 0.5, 93, 32, 32), 99, 88, scores)
    return {
        "asked": {"model": "m", "keep": [0.8, 0.5]},
        "rows": [as_json(one) for one in rows],
        "original": as_json(original),
        "source": {"model": "m", "revision": "r", "text": "t", "eval_text": "e"},
    }


def test_nothing_on_a_front_is_dominated_and_everything_else_is():
    frontier = Frontier.of(compared(ROWS))
    for cost in COSTS:
        points = frontier.points(cost)
        best = frontier.front(cost)
        for point in points:
            better = [
                other
                for other in points
                if (other.value <= point.value and other.cost < point.cost)
                or (other.value < point.value and other.cost <= point.cost)
            ]
            assert (point in best) == (not better)
        assert [p.cost for p in best] == sorted(p.cost for p in best)
        assert len(points) == len(ROWS) - 1
    names = [point.row.name for point in frontier.front(PREFILL)]
    assert names == [
        "flap keep 0.5",
        "learned keep 0.5",
        "latency 0.8",
        "learned keep 0.8",
        "original",
    ]
    assert [p.row.name for p in frontier.front(MEMORY)] == [
        "learned keep 0.5 int8",
        "original int8",
        "original",
    ]


def test_a_front_takes_both_of_two_that_are_the_same():
    twice = [row("flap", 0.8, 40.0, 0.8, 230), row("depth", 0.8, 40.0, 0.8, 230)]
    assert len(Frontier.of(compared([ROWS[0], *twice])).front(PREFILL)) == 3


def test_the_table_has_every_model_and_its_spread():
    lines = Frontier.of(compared(ROWS)).table().markdown()
    assert lines[0].startswith(
        "| model | perplexity | prefill speed | decode speed | weights, MB |"
    )
    time = "×1.43 (1.29 to 2.86)"
    name = "learned keep 0.5"
    assert f"| {name} | 50.00 ± 0.50 | {time} | {time} | 160.0 | 0.0 | prefill, decode |" in lines
    assert any("learned keep 0.5 int8 (2 layers stay as they are)" in line for line in lines)
    assert "| wanda_2_4 keep 0.5 (zeros) | 60.00 ± 0.50 | – | – | – | 0.0 |  |" in lines
    text = markdown(compared(ROWS), "frontier.png")
    assert text.startswith("| method | keep 0.8 | keep 0.5 |")
    assert not any(line.startswith(("| dense |", "| latency |")) for line in text.splitlines()[:6])
    assert "![frontier.png](frontier.png)" in text


def test_without_the_original_among_the_rows_there_is_no_frontier():
    assert "Frontier" not in markdown(compared(ROWS[2:]))


def scored(ratio: float | None) -> Scores:
    text = TextScore(9.5, 62, 32, "t", "1", "2", [2.0, 2.5], 0.5)
    if ratio is not None:
        text = replace(text, original=8.0, ratio=ratio, ratio_stderr=0.01)
    return Scores("s", {"C4": text}, {}, ratio, None if ratio is None else 0.01)


@pytest.mark.parametrize("suite", [False, True])
def test_it_is_drawn_over_time_and_memory(suite, tmp_path, monkeypatch):
    rows = ROWS
    if suite:  # in which the order is the reverse
        rows = [replace(one, scores=scored(100 / (one.perplexity or 1))) for one in ROWS]
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    found = compared(rows, scored(None) if suite else None)
    plots.draw_frontier(found, tmp_path / "frontier.png")
    axes = drawn[0].axes
    assert [axis.get_xlabel() for axis in axes] == [cost.label for cost in COSTS]
    assert axes[0].get_ylabel() == ("general_ratio" if suite else "perplexity")
    lines = {line.get_label(): line for line in axes[0].lines}
    values = [100 / 50, 100 / 24] if suite else [50.0, 24.0]
    assert list(lines["learned"].get_ydata()) == pytest.approx(values)
    assert list(lines["learned"].get_xdata()) == pytest.approx([1 / 0.7, 1 / 0.9])
    assert list(lines["learned, quantised"].get_xdata()) == pytest.approx([1 / 0.8])
    assert "wanda_2_4" not in lines  # which has no time
    if not suite:
        speeds = [1 / share for share in (0.6, 0.7, 0.8, 0.9, 1.0)]
        assert list(lines["the front"].get_xdata()) == pytest.approx(speeds)
