"""Zero-shot tasks through lm-evaluation-harness (extra `eval`), with the metrics of the paper.

The paper reports acc for WinoGrande and acc_norm for the rest, and their average.
"""

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from disp_llm.config.errors import InputError, nearest
from disp_llm.models.loading import Loaded

PAPER_TASKS = ("winogrande", "hellaswag", "arc_easy", "arc_challenge", "piqa")
"""The five of the paper's Table 3, in its order."""

BATCH = 8
"""Requests that run together."""


def metric_of(task: str, figures: dict[str, Any]) -> str:
    """The metric that counts: acc for WinoGrande and where there is no other, else acc_norm."""
    return "acc_norm" if "acc_norm" in figures and task != "winogrande" else "acc"


def run_tasks(
    loaded: Loaded, names: Iterable[str], data: dict[str, Path], limit: int
) -> dict[str, dict[str, Any]]:
    """Accuracies by task: `{acc, acc_norm, stderr, n, metric}`; stderr is that of `metric`.

    Args:
        names: tasks, or lists of them with commas; `paper` is the paper's five.
        data: local JSON-lines files, in the task's own format, in place of its hub data set.
        limit: number of questions of each task; 0 = all.

    Raises:
        InputError: lm-eval is not installed, a task does not exist, or its data cannot be had.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(
            "lm-evaluation-harness is not installed",
            field="tasks",
            hint="run `pip install 'disp-llm[eval]'`",
        ) from error
    manager = _task_manager(TaskManager)
    wanted = _known_tasks(names, data, manager.all_tasks)
    adapter = HFLM(
        pretrained=loaded.model, tokenizer=loaded.tokenizer, backend="causal", batch_size=BATCH
    )
    specified = [
        _on_local_file(manager, name, data[name]) if name in data else name for name in wanted
    ]
    try:
        results = lm_eval.simple_evaluate(
            model=adapter,
            tasks=specified,
            task_manager=manager,
            limit=limit or None,
            bootstrap_iters=0,
            log_samples=False,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"cannot run {', '.join(wanted)} ({first})",
            field="tasks",
            hint="check the network, or give local files as `task_data` NAME=FILE",
        ) from error
    return {name: _figures(name, results) for name in wanted}


@cache
def _task_manager(kind: Callable[[], Any]) -> Any:
    """lm-eval's index of its tasks, which takes seconds to make."""
    return kind()


def _known_tasks(names: Iterable[str], data: dict[str, Path], known: list[str]) -> list[str]:
    """The tasks that are asked for, one by one.

    Raises:
        InputError: lm-eval has no such task, or data is given for one that is not asked for.
    """
    given = [name for part in names for name in part.split(",") if name]
    wanted = [task for name in given for task in (PAPER_TASKS if name == "paper" else (name,))]
    for name in wanted:
        if name not in known:
            near = nearest(name, known)
            raise InputError(f"no task '{name}'{near}", field="tasks", hint="use lm-eval's names")
    for name in data:
        if name not in wanted:
            raise InputError(f"'{name}' is not among `tasks`", field="task_data", hint="name it")
    return wanted


def _on_local_file(manager: Any, name: str, path: Path) -> dict[str, Any]:
    """The task's own configuration, with one local file as its only split."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if not path.is_file():
        raise InputError(f"there is no file {path}", field="task_data", hint="name a file")
    config = dict(load_yaml(manager.task_index[name].yaml_path, resolve_func=True))
    for key in ("training_split", "validation_split", "fewshot_split", "dataset_name"):
        config.pop(key, None)
    return config | {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
    }


def _figures(name: str, results: dict[str, Any]) -> dict[str, Any]:
    """What `run_tasks` says of one task."""
    found = {key.removesuffix(",none"): value for key, value in results["results"][name].items()}
    metric = metric_of(name, found)
    n = results["n-samples"][name]["effective"]
    figures = {key: found[key] for key in ("acc", "acc_norm") if key in found}
    spread = (found[metric] * (1 - found[metric]) / max(n - 1, 1)) ** 0.5  # of a mean of 0s and 1s
    return figures | {"stderr": spread, "n": n, "metric": metric}


def average(tasks: dict[str, dict[str, Any]]) -> float:
    """The mean over tasks of the metric of each, as in the paper's tables."""
    return sum(figures[figures["metric"]] for figures in tasks.values()) / len(tasks)
