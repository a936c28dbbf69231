"""What lm-evaluation-harness (extra `eval`) has: tasks and groups of them by name, what they
measure, and their questions, from the hub or from a local file."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from disp_llm.config.errors import InputError, nearest

PAPER_TASKS = ("winogrande", "hellaswag", "arc_easy", "arc_challenge", "piqa")
"""The five of the paper's Table 3, in its order."""

GROUPS = ("GROUP", "TAG")
"""Kinds of names that stand for several tasks; only the first has a figure over them."""


def require_tasks(names: Iterable[str], data: Iterable[str] = ()) -> list[str]:
    """The tasks and groups that are asked for, one by one.

    Args:
        names: tasks or groups, or lists of them with commas; `paper` is the paper's five.
        data: names of tasks whose data is given.

    Raises:
        InputError: lm-eval is not installed, or has no such task; or data is given for one that is
            not asked for, or for a group.
    """
    known = task_manager().all_tasks
    given = [name for part in names for name in part.split(",") if name]
    wanted = [task for name in given for task in (PAPER_TASKS if name == "paper" else (name,))]
    for name in wanted:
        if name not in known:
            near = nearest(name, known)
            raise InputError(f"no task '{name}'{near}", field="tasks", hint="use lm-eval's names")
    for name in data:
        if name not in wanted:
            raise InputError(f"'{name}' is not among `tasks`", field="task_data", hint="name it")
        if _kind(name) in GROUPS:
            what = f"{name} is a group of tasks, and a file holds one"
            raise InputError(what, field="task_data", hint="name a task")
    return wanted


def require_metric(name: str, metrics: Sequence[str], hint: str) -> None:
    """Refuses what says that it has none of these metrics, and groups without a figure of their
    own. A task in Python says what it has when it has run.

    Args:
        hint: what to do about a task that has other metrics.

    Raises:
        InputError: naming the metrics that it has.
    """
    # A metric that is a function goes by the path of its file.
    stated = [str(one["metric"]).rpartition("/")[2] for one in _stated(name)]
    if not stated and _kind(name) in GROUPS:
        what = f"{name} is a group of tasks without a figure of its own"
        raise InputError(what, field="tasks", hint="name those in it")
    if stated and not set(metrics) & set(stated):
        what = f"{name} has no {' or '.join(metrics)}, but {', '.join(dict.fromkeys(stated))}"
        raise InputError(what, field="tasks", hint=hint)


def weighs_by_size(name: str, metric: str) -> bool:
    """Whether a group counts every question alike, and not every task; True for a task."""
    found = [one for one in _stated(name) if one["metric"] == metric]
    return all(one.get("weight_by_size", True) for one in found)


def load_tasks(wanted: Iterable[str], data: dict[str, Path], shots: int | None) -> dict[str, Any]:
    """lm-eval's tasks and groups by name, with their questions.

    Args:
        data: local JSON-lines files by task, in the task's own format, in place of its hub data.
        shots: solved questions in front of each; None = as many as each task says itself.

    Raises:
        InputError: the data cannot be had, a task is always asked without shots, or those of one
            group differ in how many they have.
    """
    found = {}
    for name in wanted:
        specified = _on_local_file(name, data[name]) if name in data else name
        with failure_in_one_line(name, shots):
            loaded = task_manager().load([specified])
            found[name] = loaded["groups"].get(name) or next(iter(loaded["tasks"].values()))
        _require_shots(name, found[name], shots)
    return found


def parts_of(found: Any) -> list[Any]:
    """The tasks of a group in lm-eval's order, those of the groups in it too; of a task, itself."""
    from lm_eval.api.group import Group

    return found.get_all_tasks() if isinstance(found, Group) else [found]


@contextlib.contextmanager
def failure_in_one_line(names: str, shots: int | None) -> Iterator[None]:
    """What lm-eval raises, as one line about the tasks of these names."""
    try:
        yield
    except Exception as error:  # of every kind, where the data is not what the task expects
        lines = str(error).splitlines()
        first = lines[0] if lines else type(error).__name__
        hint = "check the network, or give local files as `task_data` NAME=FILE"
        hint += ", or fewer `shots`" if shots else ""
        raise InputError(f"cannot run {names} ({first})", field="tasks", hint=hint) from error


def task_manager() -> Any:
    """lm-eval's index of its tasks, which takes seconds to make.

    Raises:
        InputError: lm-eval is not installed.
    """
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


def _kind(name: str) -> str:
    """TASK, PY_TASK, GROUP or TAG."""
    return task_manager().task_index[name].kind.name


def _stated(name: str) -> list[dict[str, Any]]:
    """What the file of a task or group says of its metrics, one by one."""
    key = "aggregate_metric_list" if _kind(name) == "GROUP" else "metric_list"
    stated = (task_manager().task_index[name].cfg or {}).get(key) or []
    return [stated] if isinstance(stated, dict) else stated


def _require_shots(name: str, found: Any, shots: int | None) -> None:
    own = {part.task_name: part.get_config("num_fewshot") for part in parts_of(found)}
    never = next((part for part, number in own.items() if number == 0), None)
    if shots and never:
        what = f"{never} says itself that it has none"
        raise InputError(what, field="shots", hint="leave `shots` out")
    numbers = {number or 0 for number in own.values()}
    if shots is None and len(numbers) > 1:
        what = f"the tasks of {name} have {min(numbers)} to {max(numbers)} of their own"
        raise InputError(what, field="shots", hint="give one number as `shots`")


def _on_local_file(name: str, path: Path) -> dict[str, Any]:
    """The task's own configuration, with one local file as its only split. Shots come from there
    too, and lm-eval leaves out the question that is asked where it is told that the splits are the
    same."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if not path.is_file():
        raise InputError(f"there is no file {path}", field="task_data", hint="name a file")
    config = dict(load_yaml(task_manager().task_index[name].yaml_path, resolve_func=True))
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
