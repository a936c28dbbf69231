"""What is committed of a comparison, and what the documents make of it: its frontier, and times of
one machine in each column."""

import json
import math
import re
import time
from pathlib import Path

import pytest

from disp_lab.results import ComparisonRow, OriginalResult
from disp_llm.runs.results import as_json
from disp_llm.runs.scores import Perplexity

ROOT = Path(__file__).parent.parent


@pytest.fixture
def experiments(monkeypatch):
    """The scripts, which import each other by name."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import frontier_tables
    import run

    return run, frontier_tables


def row(method: str, perplexity: float, time: float, error: str | None = None) -> dict:
    speed = {f"{p}_{name}": 1 / time for p in ("prefill", "decode") for name in ("ms", "speedup")}
    made = ComparisonRow(
        method, 0.5, perplexity, 0.5, 0.5, 80, 90, 0.5, 960, 1.5, error, speed,
        bytes=int(1e8 * time), kv_cache_bytes=10,
    )  # fmt: skip
    return {"error": None} | as_json(made) | speed


@pytest.fixture
def compared(tmp_path) -> dict:
    """What `compare.json` holds on a machine that has the model in a folder."""
    model = tmp_path / "some" / "model"
    model.mkdir(parents=True)
    rows = [row("original", 20.0, 1.0), row("learned", 50.0, 0.7), row("flap", 60.0, 0.8)]
    rows += [row("depth", 70.0, 0.6), row("greedy", 40.0, 0.9)]
    failed = as_json(ComparisonRow("mpo", 0.5, error=f"{model} is not there"))
    original = OriginalResult(Perplexity(20.0, 0.5, 93, 32, 32), 99, 88)
    asked = {"model": str(model), "keep": [0.5], "steps": 1, "length": 8, "batch": 1, "align": 32}
    return {
        "asked": asked | {"text": {"text": [str(model / "secret.txt")]}},
        "rows": [*rows, failed],
        "original": as_json(original),
        "source": {"model": str(model), "revision": "r", "text": "t", "eval_text": "e"},
        "hardware": {"cpu": "a CPU", "threads": 1, "system": "x"},
        "versions": {"torch": "2"},
    }


def test_nothing_that_is_committed_names_a_place_of_the_machine(experiments, compared, tmp_path):
    run, _ = experiments
    kept = run.of_comparison(compared, "disp-llm compare m")
    assert kept["asked"]["model"] == kept["source"]["model"] == "some/model"
    assert str(tmp_path) not in json.dumps(kept)


def test_a_comparison_is_whole_when_all_that_could_be_quantised_is(experiments, compared):
    run, _ = experiments
    experiment = {"command": "compare", "common": "m", "texts": {}}
    variant = {"name": "v", "flags": "--frontier"}
    result = compared | {"command": "disp-llm compare m --frontier"}
    assert run.is_whole(result, variant, experiment)
    assert not run.is_whole(result, variant | {"flags": ""}, experiment)
    waiting = as_json(ComparisonRow("original", 1.0, error="no torchao", weights="int8"))
    result["rows"] = [*result["rows"], waiting]
    assert not run.is_whole(result, variant, experiment)


def test_choices_are_those_of_the_results(experiments, compared, tmp_path, monkeypatch):
    run, tables = experiments
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "frontier.json")
    kept = {"name": "v", "command": "c"} | run.of_comparison(compared, "disp-llm compare m")
    tables.RESULTS.write_text(json.dumps([kept]))
    text = "\n".join(tables.choices())
    assert (
        "| a prompt is to take less time | greedy keep 0.5: 40.00 at ×1.11; "
        "learned keep 0.5: 50.00 at ×1.43; depth keep 0.5: 70.00 at ×1.67 |" in text
    )


def test_no_committed_result_names_a_place_of_a_machine():
    for folder in ("experiments", "benchmarks"):
        for file in (ROOT / folder).rglob("*.json"):
            assert not re.search(r"/(tmp|root|home|work)/", file.read_text()), file


XEON, EPYC = ({"cpu": cpu, "threads": 2, "system": "x"} for cpu in ("Xeon", "EPYC"))


def finished(name: str, seconds: float, hardware: dict, **more) -> dict:
    """A variant of an experiment, as results have it."""
    model = {"keep_asked": 0.5, "keep": 0.5, "keep_total": 0.6}
    model |= {"perplexity": 50.0, "perplexity_stderr": 1.0}
    return {
        "name": name, "seconds": seconds, "hardware": hardware, "tokens_seen": 960, "seed": 0,
        "versions": {"torch": "2"}, "models": [model], **more,
    }  # fmt: skip


def test_no_column_has_seconds_of_two_machines(experiments):
    from machines import Times
    from tables import table

    one, other = finished("one", 111.0, XEON), finished("other", 222.0, EPYC)
    lines = table([one, finished("more", 99.0, XEON)])
    assert lines[0].endswith("| tokens | s |")
    assert lines[3].endswith("| 960 | 99 |")
    lines = table([one, other])
    assert lines[0].endswith("| tokens | s, A | s, B |")
    assert lines[2].endswith("| 960 | 111 |  |")
    assert lines[3].endswith("| 960 |  | 222 |")
    assert {line.count("|") for line in lines} == {7}
    note = "Seconds are of A: Xeon, 2 threads; B: EPYC, 2 threads."
    assert Times.of([one, other]).note == note
    moved = finished("moved", 333.0, XEON, resumed=[{"hardware": EPYC}])
    assert Times.of([one, moved]).machines == [
        "Xeon, 2 threads",
        "Xeon, 2 threads, then EPYC, 2 threads",
    ]


def test_several_sizes_and_what_a_recovery_began_with_stand_in_a_row(experiments):
    from tables import table

    lost = {
        "general_ratio": 1.5,
        "general_ratio_stderr": 0.01,
        "texts": {"C4": {"perplexity": 9.0}},
    }
    one = finished("one", 1.0, XEON)
    (model,) = one["models"]
    one["models"] = [model | lost | {"keep": 0.79996}, model | lost | {"keep": 0.5}]
    later = finished("later", 2.0, XEON, before=lost | {"general_ratio": 2.0})
    later["models"] = [model | lost]
    _, _, first, second = table([one, later])
    cells = "| one | 0.8, 0.5 | ×1.500±0.010, ×1.500±0.010 | 9.0, 9.0 | 960 | 1 |"
    assert first == cells
    assert second == "| later | 0.5 | ×2.000±0.010 → ×1.500±0.010 | 9.0 → 9.0 | 960 | 2 |"


def test_what_was_not_recorded_is_said_to_be_unknown(experiments):
    from machines import origin_of_rows, origins

    old = finished("old", 1.0, XEON)
    assert origins([old]) == "Xeon, 2 threads: torch 2; commit unknown, seed 0, date unknown."
    new = old | {"commit": f"{'abc' * 14}-dirty", "date": "2027-01-02T03:04:05+00:00"}
    assert origins([new]).endswith("commit abcabcabcabc-dirty, seed 0, date 2027-01-02.")
    rows = [{"provenance": new}, {}]
    told = origin_of_rows(old | {"rows": rows})
    assert "commit unknown, seed unknown, date unknown; commit abc" in told
    assert told.count("Xeon") == 1
    other = origins([old, new, old | {"hardware": EPYC}])
    assert [other.count(name) for name in ("Xeon", "EPYC", "date unknown")] == [1, 1, 2]
    assert "unknown" not in origin_of_rows(old | {"rows": rows[:1]})


def test_seconds_of_greedy_stand_in_no_column_of_another_processor(experiments):
    """The old file knows one processor; the words beside it know that greedy is of another."""
    from comparison_rows import AS_USED, compared

    seconds = {row["method"]: row["seconds"] for row in compared(AS_USED)["rows"]}
    assert seconds["greedy"] is None
    assert seconds["flap"] > 0


def test_what_is_committed_of_a_run_says_where_each_size_comes_from(
    experiments, tmp_path, monkeypatch
):
    run, _ = experiments
    secret = "disp-llm prune m --text /home/someone/text.txt"
    told = {"command": secret, "seed": 3, "date": "2027-01-02", "commit": "abc"}
    told |= {"versions": {"torch": "2"}, "hardware": XEON}
    found = told | {
        "resumed": [told | {"hardware": EPYC}],
        "models": [
            {
                "keep": 0.5, "folder": "/home/someone/run/model", "provenance": told,
                "converted": "/home/someone/run/model-gguf",
            }
        ],
        "original": {"perplexity": 20.0},
        "source": {"model": "m", "text": "/home/someone/text.txt", "eval_text": "e"},
        "tokens_seen": 1, "seconds": 1.0, "status": "done",
    }  # fmt: skip

    class Done:
        returncode, stdout = 0, json.dumps(found)

    monkeypatch.setattr(run.subprocess, "run", lambda *arguments, **options: Done)
    monkeypatch.setattr(run, "named_source", lambda source: source | {"text": "text.txt"})
    experiment = {"common": "m", "variant": []}
    kept = run.run_variant({"name": "v", "flags": "--seed 3"}, experiment, tmp_path / "v")
    stated = "disp-llm prune m --seed 3"
    assert "someone" not in json.dumps(kept)
    assert (kept["command"], kept["commit"], kept["date"]) == (stated, "abc", "2027-01-02")
    assert kept["models"] == [{"keep": 0.5, "provenance": told | {"command": stated}}]
    assert kept["resumed"] == [told | {"command": stated, "hardware": EPYC}]


def test_a_row_of_several_seeds_has_their_mean(experiments):
    import comparison_rows as rows

    results = json.loads((rows.HERE / "results" / "contest.json").read_text())
    seeds = [result for result in results if result["name"].startswith("channels and heads, seed")]
    told = {"name": "ours", "experiment": "contest", "variant": [one["name"] for one in seeds]}
    row = rows._row(told)
    halves = [m["general_ratio"] for one in seeds for m in one["models"] if m["keep_asked"] == 0.5]
    assert row.seeds == len(halves) > 1
    assert row.general["0.5"] == pytest.approx(sum(halves) / len(halves))


def test_what_runs_took_is_told_by_machine(experiments, monkeypatch):
    import costs_table

    made = [
        finished("one", 120.0, XEON),
        finished("two", 300.0, XEON),
        finished("more", 60.0, EPYC),
    ]
    told = [one | {"peak_memory_bytes": 2**30 * (n + 1)} for n, one in enumerate(made)]
    names = [one["name"] for one in told]
    monkeypatch.setattr(
        costs_table, "RUNS", {"`prune`": ("any", names), "`recover`": ("any", names[2:])}
    )

    def found(asked: dict) -> list[dict]:
        return [one for one in told if one["name"] in asked["variant"]]

    monkeypatch.setattr(costs_table, "variants_of", found)
    first, _, both, single, _, note = costs_table.costs()
    assert note.endswith("`prune` for one sizes, `recover` for one.")
    assert (
        first == "| command | tokens | GiB | minutes, EPYC, 2 threads | minutes, Xeon, 2 threads |"
    )
    assert both == "| `prune` | 1 k | 1.0 to 3.0 | 1 | 2 to 5 |"
    assert single == "| `recover` | 1 k | 3.0 | 1 |  |"


def test_what_is_on_the_front_of_bytes_loses_less_than_all_that_is_as_small(experiments):
    from frontier_tables import front_of_bytes

    def row(size: int, lost: float) -> dict:
        return {"bytes": size, "general_ratio": lost}

    behind = [row(300, 1.2), row(200, 1.2), row(200, 1.5), row(150, 2.1)]  # the first: no better
    front = [row(400, 1.0), row(200, 1.1), row(100, 2.0)]
    assert front_of_bytes(behind + front[::-1]) == front


def test_pairs_over_seeds_are_those_of_student(experiments):
    import scipy.stats
    from over_seeds import Paired

    figures, others = [1.37, 1.40, 1.35], [1.30, 1.38, 1.31]
    found = Paired.of(figures, others)
    wanted = scipy.stats.ttest_rel([math.log(f) for f in figures], [math.log(o) for o in others])
    assert found.t == pytest.approx(wanted.statistic)
    ratio = math.prod(figures) / math.prod(others)
    assert found.ratio == pytest.approx(ratio ** (1 / 3))
    assert found.error == pytest.approx(found.ratio * math.log(found.ratio) / found.t)
    assert str(Paired.of([1.5], [1.0])) == Paired.of([1.5], [1.0]).said == "×1.500"


def test_structures_are_paired_by_seed_and_stand_in_order_of_loss(experiments):
    from contest_table import losses
    from over_seeds import by_name

    def result(structure: str, seed: int, ratio: float) -> dict:
        models = [{"keep_asked": 0.5, "general_ratio": ratio}]
        return {"name": f"{structure}, seed {seed}", "seed": seed, "models": models}

    figures = {"a": [2.0, 2.2, 2.1], "b, with more": [2.2, 2.3, 2.4]}
    results = [result(name, seed, r) for name, of in figures.items() for seed, r in enumerate(of)]
    results.append({"name": "c, seed 0", "error": "it failed"})
    found = by_name(results)
    assert found["b, with more"] == {0.5: {0: 2.2, 1: 2.3, 2: 2.4}}
    *_, first, second = losses(found, "", "a")
    assert first == "| a | ×2.100 | – | 3 |"
    assert second == "| b, with more | ×2.300 | ×1.095 ± 0.028, t 3.5 | 3 |"


def test_constants_that_a_variant_tries_stand_in_its_command(experiments):
    run, _ = experiments
    tried = {"flags": "--method ddp", "constants": {"disp_lab.methods.ddp.RATE": 0.04}}
    said = run.command_of(tried, {"common": "m --keep 0.5"})
    assert said == "disp-llm prune m --keep 0.5 --method ddp # disp_lab.methods.ddp.RATE = 0.04"


def test_what_the_test_suite_has_measured_stands_in_place_of_what_chose(experiments, tmp_path):
    """By experiment, variant and size; what was not measured there is left out."""
    import test_suite

    kept = {"experiment": "e", "variant": "a", "keep": 0.5}
    told = {"general_ratio": 2.5, "general_ratio_stderr": 0.1, "texts": {"Web": {}}, "seed": 7}
    results = [
        {"name": "a", "models": [{"keep_asked": 0.5, "general_ratio": 9.0, "bytes": 1}]},
        {"name": "b", "models": [{"keep_asked": 0.5, "general_ratio": 9.0}]},
    ]
    assert test_suite.on_test_suite("e", results, tmp_path) == []
    (tmp_path / "test.json").write_text(json.dumps({"models": [kept | told]}))
    figures = {name: told[name] for name in test_suite.FIGURES}
    assert test_suite.on_test_suite("e", results, tmp_path) == [
        {"name": "a", "models": [{"keep_asked": 0.5, "bytes": 1} | figures]},
    ]
    assert test_suite.on_test_suite("f", results, tmp_path) == []


def test_final_models_are_those_of_experiments_that_say_so(experiments, monkeypatch, tmp_path):
    import final

    monkeypatch.setattr(final, "HERE", tmp_path)
    (tmp_path / "done.toml").write_text('final = ["test"]')
    (tmp_path / "open.toml").write_text("")
    results = [
        {"name": "a run", "seed": 3, "models": [{"keep_asked": 0.8}, {"keep_asked": 0.5}]},
        {
            "name": "better",
            "seed": 4,
            "before": {},
            "models": [{"keep": 0.4999}],
            "command": "disp-llm recover $RUNS/a/keep-0.5 --teacher $MODELS/gemma.gguf",
        },
        {"name": "failed", "error": "it did"},
    ]
    for name in ("done", "open"):
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
    assert final.models("tasks", tmp_path / "runs", tmp_path) == []
    found = final.models("test", tmp_path / "runs", tmp_path)
    assert [place.relative_to(tmp_path / "runs") for _, place in found] == [
        Path("done/a-run/keep-0.8"), Path("done/a-run/keep-0.5"), Path("done/better/model"),
    ]  # fmt: skip
    assert [(named["variant"], named["keep"], named["seed"]) for named, _ in found] == [
        ("a run", 0.8, 3), ("a run", 0.5, 3), ("better", 0.5, 4),
    ]  # fmt: skip
    assert [named["original"] for named, _ in found] == [*[final.MODEL] * 2, "$MODELS/gemma.gguf"]
    (tmp_path / "done.toml").write_text(
        'final = ["test"]\n[[variant]]\nname = "a run"\nfinal = ["tasks"]\n'
    )
    for suite, variant in {"tasks": "a run", "test": "better"}.items():
        found = final.models(suite, tmp_path / "runs", tmp_path)
        assert {named["variant"] for named, _ in found} == {variant}


def test_the_chart_of_structures_has_a_line_for_each(experiments, monkeypatch, tmp_path):
    import contest_table

    drawn = []

    def kept(figure, path) -> None:
        drawn.extend([text.get_text() for text in axes.texts] for axes in figure.axes)

    monkeypatch.setattr(contest_table, "save", kept)
    contest_table.draw_structures(tmp_path / "chart.png")
    assert [len(labels) for labels in drawn] == [6, 5]
    assert all(contest_table.DEFAULT in labels for labels in drawn)


def test_what_begins_with_the_model_of_another_waits_for_it(experiments, tmp_path, monkeypatch):
    run, _ = experiments
    flags = ("m", "$RUNS/few/the-first/keep-0.5", "m")
    lines = [
        f'[[variant]]\nname = "{name}"\nflags = "{own}"\n'
        for name, own in zip(("the first", "second", "third"), flags, strict=True)
    ]
    (tmp_path / "few.toml").write_text('common = "--keep 0.5"\n' + "".join(lines))
    monkeypatch.setattr(run, "HERE", tmp_path)
    done: list[str] = []

    def slow(variant, experiment, folder) -> dict:
        if variant["name"] == "the first":
            time.sleep(0.5)
        done.append(variant["name"])
        return {"name": variant["name"]}

    monkeypatch.setattr(run, "run_variant", slow)
    monkeypatch.setattr("sys.argv", ["run.py", "few", "--at-once", "3", "--results", str(tmp_path)])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("RUNS", raising=False)
    run.main()
    assert done == ["third", "the first", "second"]
    written = json.loads((tmp_path / "few.json").read_text())
    assert [one["name"] for one in written] == ["the first", "second", "third"]


def test_what_another_process_has_written_meanwhile_stays(experiments, tmp_path):
    run, _ = experiments
    path = tmp_path / "few.json"
    for name in ("second", "first"):
        run.write_row({"name": name}, ["first", "second"], path)
    assert [one["name"] for one in json.loads(path.read_text())] == ["first", "second"]
    assert list(tmp_path.iterdir()) == [path]
