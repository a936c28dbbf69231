"""How many steps fit into the time of a run (`minutes` instead of `steps`).

The pace is measured on a few steps whose results are discarded. It fixes the number of steps, which
the run stores, so that a resumed attempt takes the same steps, bit for bit.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from disp_llm.config.prune import PruneConfig
from disp_llm.runs.folder import Run
from disp_llm.runs.job import Job
from disp_llm.training.blocks import WORTH_COMPILING, can_be_worth_compiling
from disp_llm.training.problem import PruningProblem

PROBES = 3
"""Timed steps, after one warm-up step."""

FEWEST = 5
"""Steps that are taken even if no time is left."""

MEASUREMENTS_A_SIZE = 6
"""Cost of a size, in measurements of the original: measuring the masked and the exported model, and
writing, loading, checking, timing and sampling the latter."""

Take = Callable[[PruningProblem, int], Any]
"""Runs the given number of steps of a problem."""


def planned_steps(problem: PruningProblem, take: Take) -> int:
    """Returns the number of steps that the time allows, or that an earlier attempt stored."""
    run, process = problem.job.run, problem.job.process
    found = run.result().get("steps")
    if found:
        return found
    steps = _steps_in(problem, take)
    if process.is_main:
        run.update(steps=steps)
    process.wait()
    return steps


def _steps_in(problem: PruningProblem, take: Take) -> int:
    def steps_of(seconds: float) -> int:
        """Steps that the slowest process has time for, so that all decide alike."""
        return int(problem.job.process.least(_seconds_left(problem) / seconds))

    how = problem.training.compile
    if how == "yes":
        return max(steps_of(_seconds_per_step(problem, take, "yes")), FEWEST)
    eager = _seconds_per_step(problem, take, "no")
    steps = steps_of(eager)
    if how == "auto" and can_be_worth_compiling(problem.dense) and steps >= WORTH_COMPILING:
        steps = steps_of(_seconds_per_step(problem, take, "yes"))
        if steps < WORTH_COMPILING:  # compiling took the time that it would have saved
            steps = min(steps_of(eager), WORTH_COMPILING - 1)
    return max(steps, FEWEST)


def _seconds_left(problem: PruningProblem) -> float:
    """Returns the time left for learning: `minutes` minus the time passed and the estimated time to
    export and measure every size, scaled from measuring the original."""
    result, config = problem.job.run.result(), problem.job.config
    of_size = MEASUREMENTS_A_SIZE * result.get("measuring_original_s", 0.0)
    of_size += result.get("scoring_original_s", 0.0)  # on the suite
    return -seconds_late(problem.job) - of_size * len(config.sizes)


def seconds_late(job: Job[PruneConfig]) -> float:
    """Returns how many seconds a run is over `minutes`, earlier attempts included; negative if time
    is left."""
    passed = job.run.result().get("seconds", 0.0) + time.perf_counter() - job.began
    return passed - 60 * job.config.learn.minutes


def _seconds_per_step(problem: PruningProblem, take: Take, compiled: Literal["yes", "no"]) -> float:
    """Returns this process's median time of a few steps, taken in a temporary run folder."""
    times: list[float] = []

    def asked_to_stop() -> bool:  # after every step
        times.append(time.perf_counter())
        return problem.job.stop_requested()

    def on_step(stage: str, done: int, total: int, figures: dict[str, Any]) -> None:
        problem.job.progress("timing steps", done, total, {})

    training = replace(problem.training, compile=compiled)
    with tempfile.TemporaryDirectory() as folder:
        job = replace(
            problem.job,
            config=replace(problem.job.config, training=training),
            run=Run(Path(folder)),
            progress=on_step,
            stop_requested=asked_to_stop,
            is_trial=True,
        )
        take(replace(problem, job=job), 1 + PROBES)
    return statistics.median(after - before for before, after in itertools.pairwise(times))
