"""Tasks and groups of them through lm-evaluation-harness (extra `eval`), with the paper's metrics.

lm-eval reads the questions, writes the prompts and counts; how likely answers are is ours to say
(`continuations.py`). The paper reports acc for WinoGrande and acc_norm for the rest, without
examples in the question (zero-shot), and their average.
"""

import contextlib
import hashlib
import logging
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from disp_llm.config.errors import InputError, nearest
from disp_llm.config.texts import SuiteTask
from disp_llm.evaluation.continuations import log_likelihoods
from disp_llm.masks.prunable import PrunableModel
from disp_llm.runs.progress import Ticks, unwatched
from disp_llm.runs.scores import TaskScore

logger = logging.getLogger(__name__)

BATCH = 8
"""Requests that run together where text is to be written."""

PAPER_TASKS = ("winogrande", "hellaswag", "arc_easy", "arc_challenge", "piqa")
"""The five of the paper's Table 3, in its order."""

ACCURACIES = ("acc_norm", "acc")
"""Metrics of questions with given answers."""

METRICS = (*ACCURACIES, "exact_match")
"""Metrics that are shares of right answers, the one that counts first."""


def run_tasks(
    target: PrunableModel,
    tokenizer: Any,
    names: Iterable[str],
    limit: int,
    shots: int | None = None,
    on_request: Ticks = unwatched,
) -> dict[str, dict[str, Any]]:
    """Accuracies by task: `{acc, acc_norm, stderr, n, metric, shots}`; stderr is lm-eval's, of
    `metric`, None of a single question. A task that is answered in words has exact_match instead,
    and if filters find the answers in the words, one for each: `{"exact_match,strict-match": …}`.

    Args:
        names: tasks or groups of them, files that state one, or lists of these with commas;
            `paper` is the paper's five.
        limit: number of questions of each task; 0 = all.
        shots: solved questions in front of each; None = as many as the task says itself.
    """
    asked = {name: load_task(name, METRICS) for name in require_tasks(names)}
    results = _results(_adapter(target, tokenizer, on_request), asked, limit, shots)
    return {name: _figures(name, task, results) for name, task in asked.items()}


def require_tasks(names: Iterable[str]) -> list[str]:
    """The tasks and groups that are asked for, one by one.

    Raises:
        InputError: lm-eval is not installed, or has no such task.
    """
    given = [name for part in names for name in part.split(",") if name]
    wanted = [task for name in given for task in (PAPER_TASKS if name == "paper" else (name,))]
    wanted = [_own_task(Path(name)) if name.endswith(".yaml") else name for name in wanted]
    known = _task_manager().task_index
    for name in wanted:
        if name not in known:
            near = nearest(name, sorted(known))
            raise InputError(f"no task '{name}'{near}", field="tasks", hint="use lm-eval's names")
    return wanted


def _own_task(path: Path) -> str:
    """The name of a task that a file states as lm-eval's own do; from then on it is one of them."""
    from lm_eval.tasks._index import TaskIndex

    try:
        entry = TaskIndex.entry_from_path(path) if path.is_file() else None
    except Exception as error:  # of every kind, as the file is damaged
        raise InputError(
            f"cannot be read ({error})", field=str(path), hint="correct the file"
        ) from error
    if entry is None:
        raise InputError("states no task", field=str(path), hint="see lm-eval's guide to new tasks")
    _task_manager().task_index[entry.name] = entry
    return entry.name


def score_task(
    target: PrunableModel,
    tokenizer: Any,
    name: str,
    task: SuiteTask,
    on_request: Ticks = unwatched,
) -> TaskScore:
    """Which questions of one task or group a model gets right, in the task's order.

    Raises:
        InputError: it has no answers that are right or wrong by the metric.
    """
    asked = load_task(name, (task.metric,), task.data)
    adapter = _adapter(target, tokenizer, on_request)
    results = _results(adapter, {name: asked}, task.limit, task.shots)
    found = [
        sample
        for part in _parts_of(asked)
        for sample in sorted(results["samples"][part], key=lambda one: one["doc_id"])
    ]
    if any(sample.get(task.metric) not in (0, 1) for sample in found):
        what = f"no question of {name} is right or wrong by {task.metric}"
        raise InputError(what, field="tasks", hint="choose another metric, or another task")
    right = [float(sample[task.metric]) for sample in found]
    hashes = "".join(sample[key] for sample in found for key in ("doc_hash", "prompt_hash"))
    accuracies = {
        metric: statistics.fmean(sample[metric] for sample in found)
        for metric in ACCURACIES
        if all(metric in sample for sample in found)
    }
    return TaskScore(
        **accuracies,
        stderr=error_of_mean(right),
        n=len(right),
        metric=task.metric,
        chance=task.chance,
        questions_sha256=hashlib.sha256(hashes.encode()).hexdigest(),
        right="".join(f"{answer:.0f}" for answer in right),
        shots=_shots(asked, results),
    )


def error_of_mean(values: Sequence[float]) -> float | None:
    """Standard error of a mean; None of a single value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def average(tasks: dict[str, dict[str, Any]]) -> float:
    """The mean over tasks of the metric of each, as in the paper's tables."""
    return sum(figures[figures["metric"]] for figures in tasks.values()) / len(tasks)


def metric_of(task: str, figures: Iterable[str]) -> str:
    """The metric that counts: acc for WinoGrande and where there is no other accuracy, else
    acc_norm; without either exact_match, by the first of the task's filters."""
    counted = [key for name in METRICS for key in figures if _without_filter(key) == name]
    return "acc" if task == "winogrande" and "acc" in counted else counted[0]


def load_task(name: str, metrics: Sequence[str], data: Path | None = None) -> Any:
    """lm-eval's task or group of that name, with its questions.

    Args:
        metrics: it has one of these.
        data: a local JSON-lines file, in the task's own format, in place of its hub data.

    Raises:
        InputError: the data cannot be had, or it has none of the metrics.
    """
    with _failure_in_one_line(name):
        loaded = _task_manager().load([name if data is None else _on_local_file(name, data)])
    task = (loaded["tasks"] | loaded["groups"]).get(name)
    stated = _stated_metrics(task)
    if stated is not None and not set(metrics) & set(stated):
        own = ", ".join(dict.fromkeys(stated)) or "is a group without a figure of its own"
        raise InputError(
            f"{name} has no {' or '.join(metrics)} ({own})",
            field="tasks",
            hint="choose another metric, another task, or the tasks in it",
        )
    return task


def _stated_metrics(task: Any) -> list[str] | None:
    """What a task or group says of its metrics; None where Python code finds them."""
    from lm_eval.api.group import Group

    if task is None:  # a tag, which lists tasks
        return []
    if isinstance(task, Group):
        return [one.metric for one in task.aggregate_metric_list or ()]
    stated = task.config.metric_list
    # A metric that is a function goes by its name.
    return stated and [getattr(one["metric"], "__name__", one["metric"]) for one in stated]


def _on_local_file(name: str, path: Path) -> dict[str, Any]:
    """The task's own configuration, with one local file as its only split. Shots come from there
    too, and lm-eval leaves out the question that is asked where it is told that the splits are the
    same."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = dict(load_yaml(_task_manager().task_index[name].yaml_path, resolve_func=True))
    for key in ("training_split", "validation_split", "fewshot_split", "dataset_name"):
        config.pop(key, None)
    shown = dict(config.get("fewshot_config") or {})
    split = {} if "samples" in shown else {"split": "test"}
    return config | {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "fewshot_config": shown | split,
    }


def _results(adapter: Any, asked: dict[str, Any], limit: int, shots: int | None) -> dict[str, Any]:
    import lm_eval

    with _failure_in_one_line(", ".join(asked)):
        found = lm_eval.simple_evaluate(
            model=adapter,
            tasks=list(asked.values()),
            num_fewshot=shots,
            limit=limit or None,
            bootstrap_iters=2,  # 0 leaves out the errors of means too, which need none
            task_manager=_task_manager(),
        )
    assert found is not None  # it is only in other processes than the first
    return found


def _adapter(target: PrunableModel, tokenizer: Any, on_request: Ticks) -> Any:
    """The model as lm-eval asks it."""
    from lm_eval.models.huggingface import HFLM

    class Adapter(HFLM):
        """lm-eval's own, but for the hook that models score tokens by."""

        def _loglikelihood_tokens(
            self,
            requests: list[tuple[Any, list[int], list[int]]],
            disable_tqdm: bool = False,
            override_bs: int | None = None,
        ) -> list[tuple[float, bool]]:
            pairs = [(context, continuation) for _, context, continuation in requests]
            cut = sum(len(context) + len(answer) - 1 > self.max_length for context, answer in pairs)
            if cut:
                logger.warning(
                    "%d of %d answers stand behind more than the %d tokens that the model reads; "
                    "the first ones are left out", cut, len(pairs), self.max_length,
                )  # fmt: skip
            return log_likelihoods(target, pairs, self.max_length, on_request)

    return Adapter(pretrained=target.model, tokenizer=tokenizer, backend="causal", batch_size=BATCH)


def _figures(name: str, asked: Any, results: dict[str, Any]) -> dict[str, Any]:
    """What `run_tasks` says of a task or group."""
    found = {key.removesuffix(",none"): of for key, of in results["results"][name].items()}
    figures = {key: value for key, value in found.items() if _without_filter(key) in METRICS}
    if not figures:  # a task in Python says what it has when it has run
        what = f"{name} has no {' or '.join(METRICS)}"
        raise InputError(what, field="tasks", hint="name another task")
    metric = metric_of(name, figures)
    bare = _without_filter(metric)
    error = found.get(metric.replace(bare, f"{bare}_stderr"))
    return figures | {
        "stderr": error if isinstance(error, float) else None,
        "n": sum(results["n-samples"][part]["effective"] for part in _parts_of(asked)),
        "metric": metric,
        "shots": _shots(asked, results),
    }


def _shots(asked: Any, results: dict[str, Any]) -> int:
    """Of a group, the most that one of its tasks has."""
    return max(results["n-shot"][part] for part in _parts_of(asked))


def _without_filter(metric: str) -> str:
    return metric.partition(",")[0]


def _parts_of(found: Any) -> list[str]:
    """The tasks of a group in lm-eval's order, those of the groups in it too; of a task, itself."""
    from lm_eval.api.group import Group

    parts = found.get_all_tasks() if isinstance(found, Group) else [found]
    return [part.task_name for part in parts]


@contextlib.contextmanager
def _failure_in_one_line(names: str) -> Iterator[None]:
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of every kind, where the data is not what the task expects
        first = (str(error).splitlines() or [type(error).__name__])[0]
        hint = "check the network, name a local file as data in a suite, or give fewer shots"
        raise InputError(f"cannot run {names} ({first})", field="tasks", hint=hint) from error


def _task_manager() -> Any:
    """lm-eval's index of its tasks, which takes seconds to make."""
    try:
        from lm_eval import tasks
    except ImportError as error:
        raise InputError(
            "lm-evaluation-harness is not installed",
            field="tasks",
            hint="run `pip install lm-eval`",
        ) from error
    return _made_once(tasks.TaskManager)


@cache
def _made_once(kind: Callable[[], Any]) -> Any:
    return kind()
