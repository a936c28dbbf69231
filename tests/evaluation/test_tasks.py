"""lm-evaluation-harness on local files; skipped where the extra `eval` is not installed."""

import json

import pytest
from conftest import must_refuse, must_run

from disp_llm.evaluation.tasks import average, metric_of

lm_eval = pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

pytestmark = pytest.mark.usefixtures("index_of_some_tasks")


def test_agrees_with_lm_eval_called_directly(llama_folder, questions, index_of_some_tasks):
    from lm_eval.models.huggingface import HFLM

    suite = questions.with_name("arc.toml")
    suite.write_text(f"[tasks.arc_easy]\nchance = 0.25\ndata = '{questions}'")
    done = must_run("eval", llama_folder, "--suite", suite, "--dtype", "float32", "--json")
    figures = json.loads(done.stdout)["tasks"]["arc_easy"]
    assert figures["n"] == 12
    assert figures["metric"] == "acc_norm"
    task = {
        "task": "local_arc",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(questions)}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{choices.label.index(answerKey)}}",
        "doc_to_choice": "{{choices.text}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    direct = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(llama_folder), dtype="float32", device="cpu"),
        tasks=[task],
        task_manager=index_of_some_tasks(),
        bootstrap_iters=10,  # without any, no error of a mean either
    )["results"]["local_arc"]
    assert figures["acc"] == direct["acc,none"]
    assert figures["acc_norm"] == direct["acc_norm,none"]
    assert figures["stderr"] == pytest.approx(direct["acc_norm_stderr,none"])
    assert figures["stderr"] > 0
    own = questions.with_name("own.yaml")
    own.write_text(json.dumps(task))  # JSON is YAML
    done = must_run("eval", llama_folder, "--tasks", own, "--dtype", "float32", "--json")
    assert json.loads(done.stdout)["tasks"]["local_arc"]["acc"] == figures["acc"]


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [", "cannot be read"), ("a: 1", "cannot be read"), (None, "states no task")],
)
def test_a_file_that_states_no_task_is_refused(text, said, llama_folder, tmp_path):
    own = tmp_path / "own.yaml"
    if text is not None:
        own.write_text(text)
    done = must_refuse("eval", llama_folder, "--tasks", own)
    assert f"{own}: {said}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_task_that_is_not_there_is_refused_before_anything_is_measured(text_file, tmp_path):
    done = must_refuse("eval", tmp_path / "none", "--text", text_file, "--tasks", "arc_eazy")
    assert "--tasks: no task 'arc_eazy' (nearest: arc_easy)" in done.stderr


def test_metrics_of_the_paper():
    both = {"acc": 0.5, "acc_norm": 0.7}
    assert metric_of("winogrande", both) == "acc"
    assert metric_of("piqa", both) == "acc_norm"
    assert metric_of("boolq", {"acc": 0.5}) == "acc"
    assert average(
        {"a": {"metric": "acc", "acc": 0.5}, "b": {"metric": "acc_norm", "acc_norm": 0.7, "acc": 0}}
    ) == pytest.approx(0.6)
