"""Runs tasks and groups of lm-evaluation-harness (extra `eval`), with the paper's metrics.

lm-eval reads the questions, writes the prompts and computes the metrics; the log-likelihoods of
answers come from `continuations.py`. The paper reports zero-shot acc for WinoGrande, zero-shot
acc_norm for the other tasks, and their average.
"""

import contextlib
import copy
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
from disp_llm.models.windows import positions_of
from disp_llm.runs.progress import Ticks, unwatched
from disp_llm.runs.scores import TaskScore

logger = logging.getLogger(__name__)

BATCH = 8
"""Requests of a batch in tasks that generate text."""

PAPER_TASKS = ("winogrande", "hellaswag", "arc_easy", "arc_challenge", "piqa")
"""The five tasks of the paper's Table 3, in its order."""

ACCURACIES = ("acc_norm", "acc")
"""Metrics of multiple-choice questions."""

METRICS = (*ACCURACIES, "exact_match")
"""Metrics that are shares of right answers, the preferred one first."""


def run_tasks(
    target: PrunableModel,
    tokenizer: Any,
    names: Iterable[str],
    limit: int,
    shots: int | None = None,
    on_request: Ticks = unwatched,
) -> dict[str, dict[str, Any]]:
    """Returns for each task `{acc, acc_norm, stderr, n, metric, shots}`; stderr is lm-eval's error
    of `metric`, None for a single question. A task answered by generated text has exact_match
    instead: one for each filter that extracts answers, such as `{"exact_match,strict-match": …}`.

    Args:
        names: tasks or groups, as `require_tasks` returns them.
        limit: number of questions of each task; 0 = all.
        shots: solved questions in front of each question; None = the task's own number.
    """
    asked = {name: load_task(name, METRICS) for name in names}
    results = _results(_adapter(target, tokenizer, on_request), asked, limit, shots)
    return {name: _figures(name, task, results) for name, task in asked.items()}


def require_tasks(names: Iterable[str]) -> list[str]:
    """Returns the single tasks and groups that the names stand for.

    Args:
        names: tasks or groups, YAML files that define one, or comma-separated lists of these;
            `paper` is the paper's five.

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
    """Adds the task that a file in lm-eval's format defines to its index; returns the name."""
    from lm_eval.tasks._index import TaskIndex

    try:
        entry = TaskIndex.entry_from_path(path) if path.is_file() else None
    except Exception as error:  # a damaged file can raise any kind
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
    asked: Any,
    on_request: Ticks = unwatched,
) -> TaskScore:
    """Scores one task or group, with a digit for every question in the task's order: 1 if right.

    Args:
        asked: the task, as `load_task` returns it.

    Raises:
        InputError: the metric is not 0 or 1 for every question.
    """
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
    """Standard error of a mean; None for a single value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def average(tasks: dict[str, dict[str, Any]]) -> float:
    """Mean over tasks of each task's metric, as in the paper's tables."""
    return sum(figures[figures["metric"]] for figures in tasks.values()) / len(tasks)


def metric_of(task: str, figures: Iterable[str]) -> str:
    """Returns the metric to report: acc for WinoGrande, else the first of acc_norm, acc and
    exact_match that the task has; exact_match is that of the task's first filter."""
    counted = [key for name in METRICS for key in figures if _without_filter(key) == name]
    return "acc" if task == "winogrande" and "acc" in counted else counted[0]


def load_task(name: str, metrics: Sequence[str], data: Path | None = None) -> Any:
    """Loads lm-eval's task or group of that name, with its questions.

    Args:
        metrics: the task needs one of these.
        data: a local JSON-lines file in the task's own format, used instead of its hub data.

    Raises:
        InputError: the task or its data cannot be loaded, or it has none of the metrics.
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
    """Names of the metrics in the definition of a task or group; empty for a tag, None if Python
    code computes them."""
    from lm_eval.api.group import Group

    if task is None:  # a tag, which only lists tasks
        return []
    if isinstance(task, Group):
        return [one.metric for one in task.aggregate_metric_list or ()]
    stated = task.config.metric_list
    # A metric may be given as a function.
    return stated and [getattr(one["metric"], "__name__", one["metric"]) for one in stated]


def _on_local_file(name: str, path: Path) -> dict[str, Any]:
    """Returns the task's own configuration with one local file as its only split. Shots come from
    that split too: lm-eval excludes the asked question from them if it knows that both are one."""
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
            bootstrap_iters=2,  # 0 would also drop the errors of means, which need no bootstrap
            task_manager=_task_manager(),
        )
    assert found is not None  # None only in processes other than the first
    return found


def _adapter(target: PrunableModel, tokenizer: Any, on_request: Ticks) -> Any:
    """Wraps the model in lm-eval's interface."""
    from lm_eval.models.huggingface import HFLM

    class Adapter(HFLM):
        """lm-eval's own class, with log-likelihoods computed by `continuations.py`."""

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

    own = copy.deepcopy(tokenizer)  # lm-eval gives it a padding token, which exports would have too
    most = positions_of(target.model.config)  # lm-eval knows fewer keys of configurations
    return Adapter(
        pretrained=target.model, tokenizer=own, backend="causal", batch_size=BATCH, max_length=most
    )


def _figures(name: str, asked: Any, results: dict[str, Any]) -> dict[str, Any]:
    """Returns the figures of one task or group, as `run_tasks` describes them."""
    found = {key.removesuffix(",none"): of for key, of in results["results"][name].items()}
    figures = {key: value for key, value in found.items() if _without_filter(key) in METRICS}
    if not figures:  # the metrics of a task in Python are known only after it has run
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
    """Number of shots; for a group, the largest of its tasks."""
    return max(results["n-shot"][part] for part in _parts_of(asked))


def _without_filter(metric: str) -> str:
    return metric.partition(",")[0]


def _parts_of(found: Any) -> list[str]:
    """Names of a group's tasks in lm-eval's order, nested groups included; of a task, its own."""
    from lm_eval.api.group import Group

    parts = found.get_all_tasks() if isinstance(found, Group) else [found]
    return [part.task_name for part in parts]


@contextlib.contextmanager
def _failure_in_one_line(names: str) -> Iterator[None]:
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # data that the task does not expect can raise any kind
        first = (str(error).splitlines() or [type(error).__name__])[0]
        hint = "check the network, name a local file as data in a suite, or give fewer shots"
        raise InputError(f"cannot run {names} ({first})", field="tasks", hint=hint) from error


def _task_manager() -> Any:
    """lm-eval's index of its tasks, made once because that takes seconds."""
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
