"""Tasks and groups of them through lm-evaluation-harness (extra `eval`), with the paper's metrics.

lm-eval reads the questions, writes the prompts and counts; how likely answers are is ours to say
(`continuations.py`). The paper reports acc for WinoGrande and acc_norm for the rest, without
examples in the question (zero-shot), and their average.

The accuracy of a group is the mean that lm-eval takes over its K tasks, Σ W_k a_k of accuracies a_k
over n_k questions, with W_k = n_k / n by size, else 1 / K; its variance is the sum of those of its
parts, Σ W_k² a_k (1 − a_k) / (n_k − 1).
"""

import contextlib
import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from disp_llm.config.errors import InputError, nearest
from disp_llm.config.suites import SuiteTask
from disp_llm.evaluation.continuations import log_likelihoods
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.loading import Loaded

logger = logging.getLogger(__name__)

BATCH = 8
"""Requests that run together where text is to be written."""

PAPER_TASKS = ("winogrande", "hellaswag", "arc_easy", "arc_challenge", "piqa")
"""The five of the paper's Table 3, in its order."""

ACCURACIES = ("acc_norm", "acc")
"""Metrics of questions with given answers."""

METRICS = (*ACCURACIES, "exact_match")
"""Metrics that are shares of right answers, the one that counts first."""

GROUPS = ("GROUP", "TAG")
"""Kinds of names that stand for several tasks; only the first has a figure over them."""


@dataclass(frozen=True)
class Answers:
    """Which questions of a task a model got right."""

    figures: dict[str, Any]
    """What `run_tasks` says of the task."""
    right: list[float]
    """By question, in the task's order: 1 where the answer is right by the metric, else 0."""
    questions_sha256: str
    """The hash of lm-eval's hashes of the questions, in the same order; with shots, also of those
    of the prompts that these stand in."""


def run_tasks(
    loaded: Loaded,
    names: Iterable[str],
    limit: int,
    shots: int | None = None,
    on_request: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, Any]]:
    """Accuracies by task: `{acc, acc_norm, stderr, n, metric, shots}`; stderr is that of `metric`.
    A task that is answered in words has exact_match instead, and if filters find the answers in the
    words, one for each: `{"exact_match,strict-match": …}`.

    Args:
        names: tasks or groups of them, or lists of these with commas; `paper` is the paper's five.
        limit: number of questions of each task; 0 = all.
        shots: solved questions in front of each; None = as many as the task says itself.
        on_request: called with (done, total) as answers are scored.
    """
    wanted = require_tasks(names)
    for name in wanted:
        _require_metric(name, METRICS, "name another task, or run lm-eval itself")
    asked = {name: load_task(name, shots) for name in wanted}
    adapter = _adapter(PrunableModel.of(loaded), loaded.tokenizer, on_request)
    results = _results(adapter, asked, limit, shots)
    return {name: _figures(name, task, results) for name, task in asked.items()}


def require_tasks(names: Iterable[str]) -> list[str]:
    """The tasks and groups that are asked for, one by one.

    Raises:
        InputError: lm-eval is not installed, or has no such task.
    """
    known = _task_manager().all_tasks
    given = [name for part in names for name in part.split(",") if name]
    wanted = [task for name in given for task in (PAPER_TASKS if name == "paper" else (name,))]
    for name in wanted:
        if name not in known:
            near = nearest(name, known)
            raise InputError(f"no task '{name}'{near}", field="tasks", hint="use lm-eval's names")
    return wanted


def require_answers(name: str, task: SuiteTask) -> None:
    """Refuses a task, or a group of them, of which `answers` cannot say what is right.

    Raises:
        InputError: it has another metric, does not count every question alike, or is a group whose
            data is to come from one file.
    """
    if task.data is not None and _kind(name) in GROUPS:
        what = f"{name} is a group of tasks, and a file holds one"
        raise InputError(what, field="tasks", hint="name a task")
    _require_metric(name, (task.metric,), "choose another metric, or another task")
    if not _weighs_by_size(name, task.metric):
        what = f"{name} counts its tasks alike, whatever their size"
        raise InputError(what, field="tasks", hint="name those in it")


def answers(
    target: PrunableModel,
    tokenizer: Any,
    name: str,
    task: SuiteTask,
    on_request: Callable[[int, int], None] = lambda done, total: None,
) -> Answers:
    """What a model answers to every question of one task or group, which `require_answers` passes.

    Args:
        on_request: called with (done, total) as answers are scored.

    Raises:
        InputError: as `run_tasks`; or it has no answers that are right or wrong by the metric.
    """
    asked = load_task(name, task.shots, task.data)
    adapter = _adapter(target, tokenizer, on_request)
    results = _results(adapter, {name: asked}, task.limit, task.shots, samples=True)
    found = [
        sample
        for part in _parts_of(asked)
        for sample in sorted(results["samples"][part.task_name], key=lambda one: one["doc_id"])
    ]
    if any(sample.get(task.metric) not in (0, 1) for sample in found):
        what = f"no question is right or wrong by {task.metric}"
        raise InputError(what, field="tasks", hint="choose another metric, or another task")
    figures = _figures(name, asked, results, task.metric)
    keys = ("doc_hash", "prompt_hash") if figures["shots"] else ("doc_hash",)
    hashes = "".join(sample[key] for sample in found for key in keys)
    return Answers(
        figures=figures,
        right=[float(sample[task.metric]) for sample in found],
        questions_sha256=hashlib.sha256(hashes.encode()).hexdigest(),
    )


def average(tasks: dict[str, dict[str, Any]]) -> float:
    """The mean over tasks of the metric of each, as in the paper's tables."""
    return sum(figures[figures["metric"]] for figures in tasks.values()) / len(tasks)


def metric_of(task: str, figures: Iterable[str]) -> str:
    """The metric that counts: acc for WinoGrande and where there is no other accuracy, else
    acc_norm; without either exact_match, by the first of the task's filters."""
    counted = [key for name in METRICS for key in figures if _bare(key) == name]
    return "acc" if task == "winogrande" and "acc" in counted else counted[0]


def load_task(name: str, shots: int | None, data: Path | None = None) -> Any:
    """lm-eval's task or group of that name, with its questions.

    Args:
        shots: solved questions in front of each; None = as many as each task says itself.
        data: a local JSON-lines file, in the task's own format, in place of its hub data.

    Raises:
        InputError: the data cannot be had, a task is always asked without shots, or those of one
            group differ in how many they have.
    """
    with _failure_in_one_line(name, shots):
        loaded = _task_manager().load([name if data is None else _on_local_file(name, data)])
        task = loaded["groups"].get(name) or next(iter(loaded["tasks"].values()))
    own = {part.task_name: part.get_config("num_fewshot") for part in _parts_of(task)}
    never = next((part for part, number in own.items() if number == 0), None)
    if shots and never:
        what = f"{never} says itself that it has none"
        raise InputError(what, field="shots", hint="leave `shots` out")
    numbers = {number or 0 for number in own.values()}
    if shots is None and len(numbers) > 1:
        what = f"the tasks of {name} have {min(numbers)} to {max(numbers)} of their own"
        raise InputError(what, field="shots", hint="give one number as `shots`")
    return task


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


def _results(
    adapter: Any, asked: dict[str, Any], limit: int, shots: int | None, samples: bool = False
) -> dict[str, Any]:
    """What lm-eval finds; with `samples`, for every question too."""
    import lm_eval

    with _failure_in_one_line(", ".join(asked), shots):
        found = lm_eval.simple_evaluate(
            model=adapter,
            tasks=list(asked.values()),
            num_fewshot=shots,
            limit=limit or None,
            bootstrap_iters=0,
            log_samples=samples,
            task_manager=_task_manager(),
        )
    assert found is not None  # it is only in other processes than the first
    return found


def _adapter(target: PrunableModel, tokenizer: Any, on_request: Callable[[int, int], None]) -> Any:
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


def _figures(name: str, asked: Any, results: dict[str, Any], metric: str = "") -> dict[str, Any]:
    """What `run_tasks` says of a task or group; without a metric, by the one that counts."""
    known = ACCURACIES if metric else METRICS
    found = _by_metric(results["results"][name])
    figures = {key: value for key, value in found.items() if _bare(key) in known}
    if not figures:  # a task in Python says what it has when it has run
        what = f"{name} has no {' or '.join(known)}"
        raise InputError(what, field="tasks", hint="name another task")
    metric = metric or metric_of(name, figures)
    names = [part.task_name for part in _parts_of(asked)]
    parts = [
        (results["n-samples"][part]["effective"], shares[metric])
        for part in names
        if metric in (shares := _by_metric(results["results"][part]))
    ]
    n, by_size = sum(size for size, _ in parts), _weighs_by_size(name, _bare(metric))
    errors = [
        (size / n if by_size else 1 / len(parts)) * (share * (1 - share) / max(size - 1, 1)) ** 0.5
        for size, share in parts
    ]
    counts = {"stderr": math.hypot(*errors), "n": n, "metric": metric}
    return figures | counts | {"shots": results["n-shot"][names[0]]}


def _by_metric(found: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's figures by metric and, where it has a name, filter."""
    return {key.removesuffix(",none"): value for key, value in found.items()}


def _bare(metric: str) -> str:
    """Without the filter."""
    return metric.partition(",")[0]


def _parts_of(found: Any) -> list[Any]:
    """The tasks of a group in lm-eval's order, those of the groups in it too; of a task, itself."""
    from lm_eval.api.group import Group

    return found.get_all_tasks() if isinstance(found, Group) else [found]


def _require_metric(name: str, metrics: Sequence[str], hint: str) -> None:
    """Refuses what says that it has none of these metrics, and groups without a figure of their
    own."""
    # A metric that is a function goes by the path of its file.
    stated = [str(one["metric"]).rpartition("/")[2] for one in _stated(name)]
    if not stated and _kind(name) in GROUPS:
        what = f"{name} is a group of tasks without a figure of its own"
        raise InputError(what, field="tasks", hint="name those in it")
    if stated and not set(metrics) & set(stated):
        what = f"{name} has no {' or '.join(metrics)}, but {', '.join(dict.fromkeys(stated))}"
        raise InputError(what, field="tasks", hint=hint)


def _weighs_by_size(name: str, metric: str) -> bool:
    """Whether a group counts every question alike, and not every task; True for a task."""
    found = [one for one in _stated(name) if one["metric"] == metric]
    return all(one.get("weight_by_size", True) for one in found)


def _stated(name: str) -> list[dict[str, Any]]:
    """What the file of a task or group says of its metrics, one by one."""
    key = "aggregate_metric_list" if _kind(name) == "GROUP" else "metric_list"
    stated = (_task_manager().task_index[name].cfg or {}).get(key) or []
    return [stated] if isinstance(stated, dict) else stated


def _kind(name: str) -> str:
    """TASK, PY_TASK, GROUP or TAG."""
    return _task_manager().task_index[name].kind.name


@contextlib.contextmanager
def _failure_in_one_line(names: str, shots: int | None) -> Iterator[None]:
    """What lm-eval raises, as one line about the tasks of these names."""
    try:
        yield
    except Exception as error:  # of every kind, where the data is not what the task expects
        lines = str(error).splitlines()
        first = lines[0] if lines else type(error).__name__
        hint = "check the network, or name a local file as data of the task in a suite"
        hint += ", or fewer `shots`" if shots else ""
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
