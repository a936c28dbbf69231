"""Tables and charts of a comparison, with a suite and without one."""

from dataclasses import replace

import pytest

from disp_lab.reporting import plots as comparison_plots
from disp_lab.reporting.canvas import APART, canvas, logarithmic
from disp_lab.reporting.frontier import COSTS, KEEP
from disp_lab.reporting.plots import draw_comparison
from disp_lab.reporting.tables import markdown
from disp_lab.results import ComparisonRow, OriginalResult
from disp_llm.runs.results import as_json
from disp_llm.runs.scores import Perplexity, Scores, TaskScore, TextScore

ALONE = Scores(
    "s",
    {"C4": TextScore(9.5, 62, 32, "t", "1", "2", [2.0, 2.5], 0.5)},
    {"arc": TaskScore(0.25, 4, "acc", 0.25, "3", "1101", acc=0.75)},
)
"""On a suite of a text and a task."""


def scores(ratio: float, kept: float) -> Scores:
    """The same against an original's."""
    text = replace(ALONE.texts["C4"], original=8.0, ratio=ratio, ratio_stderr=0.01)
    task = replace(ALONE.tasks["arc"], original=0.9, kept=kept, kept_stderr=0.02)
    return Scores("s", {"C4": text}, {"arc": task}, ratio, 0.01, kept, 0.02)


def compared(suite: bool, timed: bool) -> dict:
    """Two methods at two sizes, and one that failed."""
    rows = []
    for method, worse in (("flap", 2.0), ("learned", 1.0)):
        for keep in (0.8, 0.5):
            speed = {
                "prefill_ms": 9.0, "prefill_speedup": 1.5, "decode_ms": 2.0, "decode_speedup": 1.2
            }  # fmt: skip
            row = ComparisonRow(
                method, keep, 20 * worse / keep, 0.5, keep, 80, 90, keep, 960, 1.5,
                speed=speed if timed else {},
                scores=scores(worse / keep, keep / worse) if suite else None,
            )  # fmt: skip
            rows.append(as_json(row))
    original = OriginalResult(Perplexity(20.0, 0.5, 93, 32, 32), 99, 88, ALONE if suite else None)
    return {
        "asked": {"model": "m", "keep": [0.8, 0.5]},
        "rows": [*rows, as_json(ComparisonRow("mpo", 0.5, error="cannot"))],
        "original": as_json(original),
        "source": {"model": "m", "revision": "r", "text": "t", "eval_text": "e"},
    }


def test_figures_of_the_suite_stand_first():
    lines = markdown(compared(suite=True, timed=False)).splitlines()
    assert lines[0] == (
        "| method | general_ratio, keep 0.8 | general_ratio, keep 0.5 | kept, keep 0.8 | "
        "kept, keep 0.5 | perplexity, keep 0.8 | perplexity, keep 0.5 | tokens | s |"
    )
    assert lines[2] == (
        "| flap | ×2.500 ± 0.010 | ×4.000 ± 0.010 | 40.0 ± 2.0 % | 25.0 ± 2.0 % | 50.00 ± 0.50 | "
        "80.00 ± 0.50 | 960 | 2 |"
    )
    assert lines[4] == "| mpo | – | – | – | – | – | – |  |  |"
    assert (
        "general_ratio: times the original's perplexity, geometric mean over C4 (original 9.50)."
        in lines
    )
    assert lines[-3].startswith(
        "kept: share of the original's accuracy above chance, mean over arc (original"
    )


def test_without_a_suite_the_table_is_of_perplexity():
    lines = markdown(compared(suite=False, timed=False)).splitlines()
    assert lines[0] == "| method | keep 0.8 | keep 0.5 | tokens | s |"
    assert lines[2] == "| flap | 50.00 ± 0.50 | 80.00 ± 0.50 | 960 | 2 |"
    assert not any("general_ratio" in line or "kept" in line for line in lines)


@pytest.mark.parametrize("suite", [False, True])
@pytest.mark.parametrize("timed", [False, True])
def test_panels(suite, timed, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison_plots, "save", lambda figure, path: drawn.append(figure))
    draw_comparison(compared(suite, timed), tmp_path / "compare.png")
    axes = drawn[0].axes
    assert axes[0].get_ylabel() == ("general_ratio" if suite else "perplexity")
    labels = [KEEP.label, COSTS[0].label] if timed else [KEEP.label]
    assert [axis.get_xlabel() for axis in axes] == labels
    values = [list(line.get_ydata()) for line in axes[0].lines]
    assert [2.0, 1.25] in values if suite else [40.0, 25.0] in values  # learned, by keep
    for axis in axes:
        names = {text.get_text(): text.xyann[1] for text in axis.texts}
        assert names.keys() == {"ours", "flap"}
        assert names["flap"] >= names["ours"] + APART  # none over another


def test_a_size_that_is_too_bad_to_be_drawn_is_named(tmp_path, monkeypatch):
    """Also where another of the same method is drawn."""
    drawn = []
    monkeypatch.setattr(comparison_plots, "save", lambda figure, path: drawn.append(figure))
    result = compared(suite=False, timed=False)
    result["rows"][1]["perplexity"] = 20.0 * comparison_plots.CEILING + 1
    draw_comparison(result, tmp_path / "compare.png")
    assert drawn[0].get_suptitle() == "m; above 100 times the original, some of flap"
    assert [50.0] in [list(line.get_ydata()) for line in drawn[0].axes[0].lines]


def here(cpu: str) -> dict:
    """Where a row was made."""
    hardware = {"cpu": cpu, "threads": 2, "system": "x"}
    told = {"command": "c", "seed": 0, "date": "2027-01-01", "commit": "", "versions": {}}
    return {"provenance": told | {"hardware": hardware}}


def test_times_of_a_row_of_another_machine_are_left_out_and_said_so():
    result = compared(suite=False, timed=True)
    result["hardware"] = here("EPYC")["provenance"]["hardware"]
    result["rows"][0] |= here("Xeon")  # flap, keep 0.8; the others are old, of the whole's machine
    result["rows"][2] |= here("EPYC")
    text = markdown(result)
    assert "| flap | 50.00 ± 0.50 | 80.00 ± 0.50 | 960 | – / 2 |" in text
    assert "- flap: not timed: made on another machine (Xeon, 2 threads)" in text
    costs = [line for line in text.splitlines() if "(×" in line]
    assert [line.split(" | ")[:2] for line in costs] == [
        ["| flap", "0.5"],
        ["| learned", "0.8"],
        ["| learned", "0.5"],
    ]
    result["rows"][0] |= here("EPYC")
    assert "machine" not in markdown(result)
    assert markdown(result).count("(×") == 8


def test_all_that_is_stored_is_said_where_it_is_known():
    result = compared(suite=False, timed=True)
    result["rows"][0]["bytes"] = 163_200_000
    lines = [line for line in markdown(result).splitlines() if "(×" in line]
    assert lines[0] == "| flap | 0.8 | 0.8000 | 0.0 M | 0.80 | 163.2 | 9 (×1.50) | 2 (×1.20) |"
    assert lines[1].split(" | ")[5] == "–"


def test_paired_ratios_have_columns_and_say_what_they_are():
    result = compared(suite=False, timed=False)
    for entry, ratio in zip(result["rows"], (2.0, 2.5, 1.0, 1.0), strict=False):
        told = {"paired_with": "learned", "paired_ratio": ratio}
        error = None if entry["method"] == "learned" else 0.0123
        entry |= told | {"paired_ratio_stderr": error}
    lines = markdown(result).splitlines()
    assert lines[0] == (
        "| method | perplexity, keep 0.8 | perplexity, keep 0.5 | paired ratio, keep 0.8 | "
        "paired ratio, keep 0.5 | tokens | s |"
    )
    assert "| ×2.000 ± 0.012 | ×2.500 ± 0.012 |" in lines[2]
    assert "| ×1.000 | ×1.000 |" in lines[3]
    (said,) = (line for line in lines if line.startswith("paired ratio: "))
    assert "that of learned at 0.8, learned at 0.5, over the same windows" in said


@pytest.mark.parametrize(("original", "highest"), [(22.8, 66.0), (390.0, 176.0)])
def test_an_axis_of_perplexities_has_numbers(original, highest):
    """Also where pruned models are ahead of the original."""
    axes = canvas(4, 3).subplots()
    axes.plot([original, highest])
    logarithmic(axes)
    assert len(axes.get_yticks()) > 1
    low, high = sorted((original, highest))
    assert any(low <= tick <= high for tick in axes.get_yticks())
