"""Scores on a suite: the formulas against a bootstrap, and the whole command on tiny models."""

import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from conftest import (
    SMALL,
    byte_tokenizer,
    must_refuse,
    must_run,
    run_command,
    tiny_model,
    tiny_prunable,
)

import disp_llm
from disp_llm.config.errors import InputError
from disp_llm.config.parts import PerplexityConfig
from disp_llm.data.tokens import tokenize
from disp_llm.evaluation.perplexity import perplexity
from disp_llm.evaluation.suites import (
    against,
    difference,
    geometric_mean,
    kept_above_chance,
    loss_ratio,
    mean,
)
from disp_llm.runs.scores import Scores, TaskScore

SAMPLES = 4000


@pytest.fixture
def made_up():
    """Losses of two texts and answers to two tasks, (pruned, dense) each, paired as those of a
    model and its original are."""
    draw = np.random.default_rng(0)
    texts, tasks = [], []
    for windows, lost in ((16, 0.2), (40, 0.5)):
        dense = draw.normal(3, 0.4, windows)
        texts.append((dense + draw.normal(lost, 0.1, windows), dense))
    for questions in (800, 500):
        dense = draw.random(questions) < 0.6
        flipped = draw.random(questions) < 0.2
        tasks.append((np.where(flipped, draw.random(questions) < 0.25, dense) * 1.0, dense * 1.0))
    return texts, tasks


def resampled(pair):
    """(pruned, dense) of as many windows or questions, drawn with replacement: (SAMPLES, n)."""
    draw = np.random.default_rng(1)
    places = draw.integers(len(pair[0]), size=(SAMPLES, len(pair[0])))
    return pair[0][places], pair[1][places]


def test_ratio_of_perplexities(made_up):
    logs, ratios = [], []
    for pair in made_up[0]:
        found, error = loss_ratio(*map(list, pair))
        assert found == pytest.approx(np.exp(pair[0].mean()) / np.exp(pair[1].mean()))
        pruned, dense = resampled(pair)
        logs.append((pruned - dense).mean(1))
        assert error == pytest.approx(np.exp(logs[-1]).std(), rel=0.06)
        ratios.append((found, error))
    found, error = geometric_mean(ratios)
    assert found == pytest.approx(math.sqrt(ratios[0][0] * ratios[1][0]))
    draw = np.random.default_rng(2)
    together = np.exp((draw.permutation(logs[0]) + draw.permutation(logs[1])) / 2)
    assert error == pytest.approx(together.std(), rel=0.06)


def test_kept_of_tasks(made_up):
    shares, drawn = [], []
    for pair in made_up[1]:
        found, error = kept_above_chance(*map(list, pair), 0.25)
        assert found == pytest.approx((pair[0].mean() - 0.25) / (pair[1].mean() - 0.25))
        pruned, dense = resampled(pair)
        drawn.append((pruned.mean(1) - 0.25) / (dense.mean(1) - 0.25))
        assert error == pytest.approx(drawn[-1].std(), rel=0.06)
        shares.append((found, error))
    found, error = mean(shares)
    assert found == pytest.approx((shares[0][0] + shares[1][0]) / 2)
    together = (drawn[0] + np.random.default_rng(2).permutation(drawn[1])) / 2
    assert error == pytest.approx(together.std(), rel=0.06)


def test_where_half_is_kept_an_answer_of_the_original_counts_half():
    """Residuals of 1/2, -1/2, 0 and 0 have a variance of 1/6; half of the original is right."""
    kept, error = kept_above_chance([1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], 0.0)
    assert kept == 0.5
    assert error == pytest.approx(math.sqrt(1 / 6 / 4) / 0.5)


def test_a_model_loses_nothing_against_itself():
    assert loss_ratio([2.0, 3.0], [2.0, 3.0]) == (1, 0)
    assert kept_above_chance([1.0, 0.0, 1.0], [1.0, 0.0, 1.0], 0.25) == (1, 0)


def test_a_single_window_or_question_has_no_error():
    assert loss_ratio([2.0], [1.0]) == (math.e, None)
    assert geometric_mean([(2.0, 0.1), (8.0, None)]) == (pytest.approx(4), None)
    assert kept_above_chance([1.0], [1.0], 0.5) == (1, None)


def scored(right):
    figures = {
        "stderr": 0.0,
        "n": len(right),
        "metric": "acc",
        "acc": right.count("1") / len(right),
    }
    return Scores(
        "s", tasks={"t": TaskScore(**figures, chance=0.5, questions_sha256="", right=right)}
    )


def test_a_task_in_which_the_original_only_guesses_does_not_count(caplog):
    found = against(scored("1110"), scored("0101"))
    assert (found.kept, found.tasks["t"].kept, found.tasks["t"].original) == (None, None, 0.5)
    assert "not above chance; it does not count" in caplog.text
    assert against(scored("0101"), scored("1110")).kept == 0


def test_other_questions_are_not_compared():
    original = scored("1110")
    assert difference(original, original) == ""
    other = replace(original.tasks["t"], questions_sha256="1")
    assert difference(Scores("s", tasks={"t": other}), original) == "tasks.t"
    assert difference(Scores("s", tasks=original.tasks | {"u": other}), original) == "tasks.u"
    with pytest.raises(InputError, match=r"was measured on other tasks\.t"):
        against(Scores("s"), original)


@pytest.fixture
def suite(tmp_path, text_file):
    """Two texts, four windows of 32 tokens each."""
    (tmp_path / "b.txt").write_text("Other words, as they come, one after the other. " * 20)
    path = tmp_path / "two.toml"
    path.write_text(
        f"context = 32\nwindows = 4\n[texts.A]\nfiles = ['{text_file}']\n"
        "[texts.B]\nfiles = ['b.txt']\n"
    )
    return path


def evaluated(*arguments):
    done = must_run("eval", *arguments, "--dtype", "float32", "--json")
    return json.loads(done.stdout), done.stderr


def test_texts_against_the_original(llama_folder, other_folder, suite, text_file):
    alone, _ = evaluated(other_folder, "--suite", suite)
    assert alone.keys() & {"general_ratio", "kept", "tasks", "original"} == set()
    found, told = evaluated(llama_folder, "--suite", suite, "--against", other_folder)
    assert found["suite"] == "two"
    assert found["original"]["model"] == str(other_folder)
    stream = tokenize([text_file.read_text()], byte_tokenizer())
    values = [
        perplexity(tiny_prunable("llama", seed=seed), stream, PerplexityConfig(32, 4))
        for seed in (0, 1)
    ]
    text = found["texts"]["A"]
    assert text["perplexity"] == pytest.approx(values[0].perplexity, rel=1e-6)
    assert text["original"] == pytest.approx(values[1].perplexity, rel=1e-6)
    assert text["ratio"] == pytest.approx(text["perplexity"] / text["original"], rel=1e-5)
    ratios = [part["ratio"] for part in found["texts"].values()]
    assert found["general_ratio"] == pytest.approx(statistics.geometric_mean(ratios))
    lines = [line for line in told.splitlines() if line.startswith("two: ")]
    assert lines == [
        f"two: perplexity of the texts ×{found['general_ratio']:.3f} ± "
        f"{found['general_ratio_stderr']:.3f}"
    ]


def test_every_third_window(llama_folder, suite):
    whole, _ = evaluated(llama_folder, "--suite", suite)
    suite.write_text(suite.read_text().replace("windows = 4", "windows = 2\nevery = 3"))
    thinned, _ = evaluated(llama_folder, "--suite", suite)
    for name, text in thinned["texts"].items():
        assert text["losses"] == whole["texts"][name]["losses"][::3]


def test_first_rows_of_a_data_set(llama_folder, tmp_path):
    rows = tmp_path / "rows"
    rows.mkdir()
    texts = [f"Row {i} has these words, which are not many." for i in range(30)]
    (rows / "test.jsonl").write_text("".join(json.dumps({"words": t}) + "\n" for t in texts))
    (tmp_path / "first.txt").write_text("\n\n".join(texts[:3]))
    suite = tmp_path / "rows.toml"
    suite.write_text(
        f"context = 32\nwindows = 4\n[texts.A]\ndataset = '{rows}'\nfield = 'words'\nrows = 3\n"
        "[texts.B]\nfiles = ['first.txt']"
    )
    texts = evaluated(llama_folder, "--suite", suite)[0]["texts"]
    assert texts["A"]["perplexity"] == texts["B"]["perplexity"]
    assert texts["A"]["text"] == "rows/"
    suite.write_text(f"[texts.A]\ndataset = '{rows}'\nrows = 3")
    done = must_refuse("eval", llama_folder, "--suite", suite)
    assert "rows.toml: texts.A: " in done.stderr.splitlines()[-1]
    assert "words" in done.stderr.splitlines()[-1]


def test_from_python_and_in_memory(suite):
    found = disp_llm.eval(tiny_model("llama"), byte_tokenizer(), suite=str(suite))
    assert found["texts"].keys() == {"A", "B"}
    with pytest.raises(InputError, match="given together with `suite`"):
        disp_llm.eval(tiny_model("llama"), byte_tokenizer(), suite=str(suite), text=[1, 2, 3])


def test_a_folder_of_a_run_knows_its_original(small_run, llama_folder, suite):
    folder = small_run[1]["models"][0]["folder"]
    found, _ = evaluated(folder, "--suite", suite)
    assert found["original"]["model"] == str(llama_folder)
    assert found["general_ratio_stderr"] > 0


@pytest.mark.usefixtures("index_of_some_tasks")
def test_tasks_against_the_original(llama_folder, other_folder, suite, questions):
    task = f"[tasks.arc_easy]\nmetric = 'acc'\ndata = '{questions.name}'\n"
    suite.write_text(task + "chance = 0.01")
    found, _ = evaluated(llama_folder, "--suite", suite, "--against", other_folder)
    scored = found["tasks"]["arc_easy"]
    assert scored["acc"] == scored["right"].count("1") / 12
    assert scored["n"] == 12
    assert found["kept"] == pytest.approx((scored["acc"] - 0.01) / (scored["original"] - 0.01))


@pytest.mark.usefixtures("index_of_some_tasks")
@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("[tasks.arc_esy]\nchance = 0", "tasks: no task 'arc_esy' (nearest: arc_easy)"),
        ("[tasks.arc_easy]\nchance = 0\ndata = 'b.txt'", "tasks.arc_easy: cannot run arc_easy"),
        ("[tasks.arc_easy]\nchance = 0\ndata = 'c.jsonl'", "tasks.arc_easy: cannot run arc_easy"),
    ],
)
def test_tasks_that_cannot_be_run(llama_folder, suite, tmp_path, task, said):
    (tmp_path / "c.jsonl").write_text('{"question": 3}')
    suite.write_text(task)
    done = must_refuse("eval", llama_folder, "--suite", suite)
    assert f"two.toml: {said}" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("index_of_some_tasks")
def test_damaged_data_is_refused_before_the_model_is_loaded(suite, tmp_path):
    (tmp_path / "damaged.jsonl").write_text('{"question"')
    suite.write_text("[tasks.arc_easy]\nchance = 0\ndata = 'damaged.jsonl'")
    done = must_refuse("eval", tmp_path / "none", "--suite", suite)
    assert "two.toml: tasks.arc_easy: cannot run arc_easy" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--against", "x"], "--against: is for a suite; leave it out, or give --suite"),
        (["--suite", "generl"], "--suite: no suite 'generl' (nearest: general)"),
        (["--suite", "SUITE", "--text", "x"], "--text: given together with --suite"),
        (["--suite", "SUITE", "--windows", 3], "--windows: given together with --suite"),
        (["--suite", "SUITE", "--against", "gone/x"], "--against: cannot load 'gone/x'"),
    ],
)
def test_mistakes_are_one_line(llama_folder, suite, arguments, said):
    given = [suite if argument == "SUITE" else argument for argument in arguments]
    done = must_refuse("eval", llama_folder, *given)
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "context = 500\nwindows = 1\n[texts.A]\nfiles = ['b.txt']",
            "texts.A: 500 tokens, and the model has",
        ),
        ("[texts.A]\nfiles = ['mine.jsonl']", "texts.A: "),
        (
            "[texts.A]\nfiles = ['mine.jsonl']\nsha256 = '00'\norigin = 'its page'",
            "texts.A: mine.jsonl is not the file that the suite means; get it from its page",
        ),
    ],
)
def test_texts_that_cannot_be_read(llama_folder, suite, tmp_path, content, said):
    (tmp_path / "mine.jsonl").write_text("{")
    suite.write_text(content)
    done = must_refuse("eval", llama_folder, "--suite", suite)
    assert f"{suite}: {said}" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_run_measures_every_size_on_its_suite(llama_folder, text_file, suite, tmp_path):
    run = tmp_path / "run"
    done = must_run(
        "prune", llama_folder, "--keep", 0.5, "--text", text_file, "--suite", suite,
        "--output-dir", run, "--json", "--method", "magnitude", *SMALL,
    )  # fmt: skip
    figures = json.loads(done.stdout)
    dense, pruned = figures["original"], figures["models"][0]
    assert dense["scores"]["texts"] == evaluated(llama_folder, "--suite", suite)[0]["texts"]
    alone, _ = evaluated(run / "keep-0.5", "--suite", suite)
    scored = pruned["scores"]
    assert scored["general_ratio"] == alone["general_ratio"]
    assert scored["texts"]["A"]["original"] == dense["scores"]["texts"]["A"]["perplexity"]
    said = f"{scored['general_ratio']:.3f} ± {scored['general_ratio_stderr']:.3f}"
    assert f"×{said}" in done.stderr
    card = (run / "keep-0.5" / "README.md").read_text()
    assert f"| perplexity / the original's, geometric mean over A, B | ×1 | ×{said} | |" in card
    done = must_run("export", run, "--keep", 0.7)
    models = json.loads((run / "result.json").read_text())["models"]
    assert [model["scores"]["suite"] for model in models] == ["two", "two"]
    must_run("verify", run)
    page = (run / "report.html").read_text()
    assert "perplexity of the suite" in page
    assert f"<td>×{said}</td>" in page
    assert str(tmp_path) not in page
    (suite.parent / "b.txt").write_text("Something else.")
    done = run_command("export", run, "--keep", 0.6)
    assert "its texts are not those that the original was measured on" in done.stderr
