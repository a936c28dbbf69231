"""Shots, groups and written answers: tasks that are defined here, on local files, against what
lm-evaluation-harness finds without us."""

import json
from functools import partial
from pathlib import Path

import pytest
from conftest import byte_tokenizer, must_refuse, must_run, tiny_prunable

from disp_llm.config.texts import load_suite
from disp_llm.evaluation import tasks
from disp_llm.evaluation.suites import kept_above_chance
from disp_llm.evaluation.tasks import ACCURACIES, METRICS, load_task, metric_of, run_tasks
from disp_llm.models.windows import positions_of
from disp_llm.runs.progress import unwatched

lm_eval = pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

CHOSEN = """
dataset_path: json
dataset_kwargs: {data_files: {train: FOLDER/train.jsonl, test: FOLDER/FILE.jsonl}}
training_split: train
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}]
"""
WRITTEN = """
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/written.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{wanted}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 4}
metric_list: [{metric: exact_match}]
filter_list:
  - {name: whole, filter: [{function: take_first}]}
  - {name: first, filter: [{function: regex, regex_pattern: "(?s)^(.)"}, {function: take_first}]}
"""
SUMS = CHOSEN.replace("FILE", "sums")
TASKS = {
    "sums": SUMS + "tag: arithmetic",
    "products": CHOSEN.replace("FILE", "products"),
    "shown": SUMS + "num_fewshot: 2",
    "written": WRITTEN,
    "scored": WRITTEN.replace("exact_match", "bleu"),
}
ACC = "aggregate_metric_list: [{metric: acc}]"
GROUPS = {
    "by_size": f"task: [sums, {{group: inner, task: [products]}}]\n{ACC}",
    "alike": "task: [sums, products]\naggregate_metric_list: {metric: acc, weight_by_size: false}",
    "listed": "task: [sums, products]",
}
SIZES = {"sums": 40, "products": 10}


def questions_of(word, count):
    return [
        {"question": f"{word} {i}, {i % 7}:", "choices": [f"{i % 5}", "12", "x"], "answer": i % 3}
        for i in range(count)
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of tasks and groups, which lm-eval knows in place of its own."""
    from lm_eval import tasks

    for name, size in (SIZES | {"train": 6}).items():
        write(tmp_path / f"{name}.jsonl", questions_of(name, size))
    write(tmp_path / "written.jsonl", [row | {"wanted": "?"} for row in questions_of("w", 4)])
    for name, content in TASKS.items():
        content = content.replace("FOLDER", str(tmp_path))
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{content}")
    for name, content in GROUPS.items():
        (tmp_path / f"{name}.yaml").write_text(f"group: {name}\n{content}")
    index = partial(tasks.TaskManager, include_defaults=False, include_path=tmp_path)
    monkeypatch.setattr(tasks, "TaskManager", index)
    return tmp_path


def directly(model, task, **settings):
    """What lm-eval finds without us."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    return lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(model), dtype="float32", device="cpu"),
        tasks=[task],
        task_manager=TaskManager(),
        bootstrap_iters=10,
        **settings,
    )


def evaluated(*arguments):
    done = must_run("eval", *arguments, "--dtype", "float32", "--json")
    return json.loads(done.stdout)


def refused(*arguments):
    done = must_refuse("eval", *arguments)
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def in_suite(folder, **tasks):
    path = folder / "mine.toml"
    path.write_text(
        "".join(f"[tasks.{name}]\nmetric = 'acc'\n{of}\n" for name, of in tasks.items())
    )
    return path


@pytest.mark.parametrize(("flags", "shots"), [([], (0, 2)), (["--shots", 4], (4, 4))])
def test_shots_are_those_of_lm_eval(llama_folder, folder, flags, shots):
    found = evaluated(llama_folder, "--tasks", "sums,shown", *flags)["tasks"]
    for name, number in zip(("sums", "shown"), shots, strict=True):
        theirs = directly(llama_folder, "sums", num_fewshot=number)["results"]["sums"]
        assert found[name]["acc"] == theirs["acc,none"]
        assert found[name]["stderr"] == pytest.approx(theirs["acc_stderr,none"])
        assert found[name]["shots"] == number
    assert (found["sums"]["acc"] == found["shown"]["acc"]) == bool(flags)


def test_the_tokenizer_of_what_is_exported_later_gains_no_token(folder):
    tokenizer = byte_tokenizer()
    for name in ("pad_token", "unk_token", "eos_token"):
        setattr(tokenizer, name, None)
    run_tasks(tiny_prunable("llama"), tokenizer, ["sums"], limit=2)
    assert (tokenizer.pad_token, len(tokenizer)) == (None, len(byte_tokenizer()))


def test_no_shots_in_place_of_a_task_s_own(llama_folder, folder):
    found = evaluated(llama_folder, "--tasks", "shown,sums", "--shots", 0)["tasks"]
    assert found["shown"] == found["sums"]


@pytest.mark.parametrize(("shots", "cut"), [(0, False), (6, True)])
def test_shots_that_do_not_fit_are_a_warning(llama_folder, folder, caplog, shots, cut):
    write(folder / "train.jsonl", questions_of("long " * 40, 6))
    evaluated(llama_folder, "--tasks", "products", "--shots", shots)
    assert ("30 of 30 answers stand behind more than the " in caplog.text) == cut


def test_tables_name_the_shots(llama_folder, folder):
    suite = in_suite(folder, shown="chance = 0")
    for flags in (["--tasks", "shown"], ["--suite", suite]):
        done = must_run("eval", llama_folder, *flags)
        head, row = (
            line.split()
            for line in done.stdout.splitlines()
            if line.split()[:1] in (["task"], ["shown"])
        )
        assert head[-2:] == ["questions", "shots"]
        assert row[-2:] == ["40", "2"]


def test_shots_of_a_local_file_are_not_the_question(folder):
    """They come from the same file, for want of another."""
    task = load_task("sums", METRICS, folder / "products.jsonl")
    task.set_config("num_fewshot", 3)
    task.set_fewshot_seed(1)
    task.build_all_requests()
    for instance in task.instances:
        shown, _, asked = instance.args[0].rpartition("\n\n")
        assert asked == instance.doc["question"]
        assert asked not in shown
        assert len(shown.split("\n\n")) == 3
    whole = {instance.doc["question"] for instance in task.instances}
    assert len(whole) == SIZES["products"]


def test_shots_are_part_of_what_is_compared(llama_folder, other_folder, folder):
    suite = in_suite(folder, sums="chance = 0.1\nshots = 3")
    found = evaluated(llama_folder, "--suite", suite, "--against", other_folder)
    scored = found["tasks"]["sums"]
    plain = evaluated(llama_folder, "--tasks", "sums", "--shots", 3)["tasks"]["sums"]
    assert (scored["shots"], scored["acc"]) == (3, plain["acc"])
    assert found["kept"] == pytest.approx((scored["acc"] - 0.1) / (scored["original"] - 0.1))
    in_suite(folder, sums="chance = 0.1")
    bare = evaluated(llama_folder, "--suite", suite)["tasks"]["sums"]
    assert bare["questions_sha256"] != scored["questions_sha256"]


def test_groups_are_those_of_lm_eval(llama_folder, folder):
    found = evaluated(llama_folder, "--tasks", "by_size", "--shots", 2)
    theirs = directly(llama_folder, "by_size", num_fewshot=2)
    figures, of_parts = found["tasks"]["by_size"], theirs["results"]
    assert figures["acc"] == of_parts["by_size"]["acc,none"]
    assert (figures["n"], figures["shots"], figures["metric"]) == (50, 2, "acc")
    assert figures["stderr"] == pytest.approx(of_parts["by_size"]["acc_stderr,none"])
    shares = {name: of_parts[name]["acc,none"] for name in SIZES}
    assert len(set(shares.values())) == 2
    assert found["average"] == figures["acc"]


def test_a_group_that_counts_its_tasks_alike(llama_folder, folder):
    figures = evaluated(llama_folder, "--tasks", "alike")["tasks"]["alike"]
    theirs = directly(llama_folder, "alike")["results"]["alike"]
    assert figures["acc"] == theirs["acc,none"]
    assert figures["stderr"] == pytest.approx(theirs["acc_stderr,none"])
    assert (
        figures["acc"] != evaluated(llama_folder, "--tasks", "by_size")["tasks"]["by_size"]["acc"]
    )


def test_a_limit_is_that_of_each_task_of_a_group(llama_folder, folder):
    figures = evaluated(llama_folder, "--tasks", "by_size", "--limit", 1)["tasks"]["by_size"]
    assert (figures["n"], figures["stderr"]) == (2, None)


def test_kept_of_a_group_is_over_all_its_questions(llama_folder, other_folder, folder):
    suite = in_suite(folder, by_size="chance = 0.1")
    found = evaluated(llama_folder, "--suite", suite, "--against", other_folder)
    group = found["tasks"]["by_size"]
    parts = in_suite(folder, **dict.fromkeys(SIZES, "chance = 0"))
    pruned, dense = (
        "".join(evaluated(model, "--suite", parts)["tasks"][name]["right"] for name in SIZES)
        for model in (llama_folder, other_folder)
    )
    assert group["right"] == pruned
    assert group["acc"] == pytest.approx(pruned.count("1") / 50)
    assert group["original"] == pytest.approx(dense.count("1") / 50)
    kept, error = kept_above_chance([*map(float, pruned)], [*map(float, dense)], 0.1)
    assert (group["kept"], group["kept_stderr"]) == (pytest.approx(kept), pytest.approx(error))
    assert pruned != dense


def test_exact_match_of_what_is_written(llama_folder, folder):
    """The model is right where its own words are wanted: in three of four, and in the first
    letter of the fourth."""
    samples = directly(llama_folder, "written")["samples"]["written"]
    said = {one["doc"]["question"]: one["resps"][0][0] for one in samples}
    rows = [row | {"wanted": said[row["question"]]} for row in questions_of("w", 4)]
    rows[3]["wanted"] = rows[3]["wanted"][0]
    assert all(len(row["wanted"]) > 1 for row in rows[:3])
    write(folder / "written.jsonl", rows)
    found = evaluated(llama_folder, "--tasks", "written,sums")
    assert found["tasks"]["written"] == {
        "exact_match,whole": 0.75,
        "exact_match,first": 0.25,
        "stderr": pytest.approx(0.25),
        "n": 4,
        "metric": "exact_match,whole",
        "shots": 0,
    }
    assert found["average"] == pytest.approx((0.75 + found["tasks"]["sums"]["acc"]) / 2)


def test_an_accuracy_counts_before_exact_match():
    assert metric_of("x", ["exact_match,first", "acc"]) == "acc"
    assert metric_of("x", ["exact_match,second", "exact_match,first"]) == "exact_match,second"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--tasks", "sums", "--shots", -1],
            "--shots: out of range; give a whole number of at least 0",
        ),
        (["--shots", 5], "--shots: is for tasks; leave it out, or give --tasks"),
        (
            ["--suite", "general", "--shots", 5],
            "--shots: given together with --suite; leave it out",
        ),
        (["--tasks", "sums", "--shots", 9], "or give fewer shots"),
        (["--tasks", "arithmetic"], "acc or exact_match (is a group without a figure of its own)"),
        (["--tasks", "listed"], "acc or exact_match (is a group without a figure of its own)"),
        (["--tasks", "scored"], "scored has no acc_norm or acc or exact_match (bleu); choose"),
        (["--tasks", "by_sise"], "no task 'by_sise' (nearest: by_size)"),
        (["--tasks", "by_size,sums"], "Duplicate task 'sums'"),
    ],
)
def test_mistakes_are_one_line(llama_folder, folder, flags, said):
    assert said in refused(llama_folder, *flags)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("[tasks.listed]", "tasks.listed: listed has no acc_norm (is a group without a figure"),
        ("[tasks.sums]", "tasks.sums: sums has no acc_norm (acc); choose another metric"),
        ("[tasks.written]", "tasks.written: written has no acc_norm (exact_match)"),
        ("[tasks.by_size]\ndata = 'sums.jsonl'", "tasks.by_size: "),
    ],
)
def test_mistakes_in_a_suite_are_one_line(llama_folder, folder, task, said):
    suite = folder / "mine.toml"
    suite.write_text(f"{task}\nchance = 0")
    assert f"mine.toml: {said}" in refused(llama_folder, "--suite", suite)


STAND_INS = {
    "boolq": ("super_glue/boolq", {"passage": "p", "question": "q", "label": 1}),
    "piqa": ("piqa", {"goal": "g", "sol1": "a", "sol2": "bc", "label": 1}),
    "hellaswag": (
        "hellaswag",
        {"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": list("wxyz"), "label": "2"},
    ),
    "winogrande": (
        "winogrande",
        {"sentence": "The _ is it.", "option1": "a", "option2": "b", "answer": "2"},
    ),
    "arc_easy": ("arc", {"question": "q", "answerKey": "B"}),
    "arc_challenge": ("arc", {"question": "q", "answerKey": "B"}),
    "openbookqa": ("openbookqa", {"question_stem": "q", "answerKey": "B"}),
}
"""Where lm-eval has the tasks of `commonsense`, and a question in the form of their data."""


def test_commonsense_is_seven_tasks(llama_folder, tmp_path, monkeypatch, text_file):
    """Its tasks are run on local questions; chance is one over the number of given answers."""
    from lm_eval import tasks

    shipped, suite = load_suite("commonsense"), tmp_path / "local.toml"
    assert shipped.tasks.keys() == STAND_INS.keys()
    assert [text.dataset for text in shipped.texts.values()] == ["wikitext:wikitext-2-raw-v1:test"]
    root = Path(tasks.__file__).parent
    folders = sorted({root / place for place, _ in STAND_INS.values()})
    index = partial(tasks.TaskManager, include_defaults=False, include_path=folders)
    monkeypatch.setattr(tasks, "TaskManager", index)
    content = f"context = 32\nwindows = 2\n[texts.A]\nfiles = ['{text_file}']\n"
    for name, (_, row) in STAND_INS.items():
        choices = {"text": list("wxyz"), "label": list("ABCD")}
        write(tmp_path / f"{name}.jsonl", [row | {"choices": choices}] * 2)
        of = shipped.tasks[name]
        content += f"[tasks.{name}]\nchance = {of.chance}\nmetric = '{of.metric}'\n"
        content += f"data = '{name}.jsonl'\n"
    suite.write_text(content)
    found = evaluated(llama_folder, "--suite", suite)["tasks"]
    for name in found:
        task = load_task(name, METRICS, tmp_path / f"{name}.jsonl")
        answers = task.doc_to_choice(next(iter(task.test_docs())))
        assert found[name]["chance"] == 1 / len(answers)
        assert (found[name]["n"], found[name].get("shots", 0)) == (2, 0)
        metrics = {one["metric"] for one in task.config.metric_list}
        assert found[name]["metric"] == next(one for one in ACCURACIES if one in metrics)


@pytest.mark.parametrize("model_type", ["llama", "mpt"])
def test_a_prompt_may_be_as_long_as_the_model_reads(model_type):
    """MPT states it by a key that lm-eval does not know."""
    target = tiny_prunable(model_type)
    adapter = tasks._adapter(target, byte_tokenizer(), unwatched)
    assert adapter.max_length == positions_of(target.model.config)
    assert adapter.max_length < 2048  # what lm-eval takes where it finds nothing
