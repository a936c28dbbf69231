"""Counted against measured peak memory of learning, and the time of a step: random Llamas, with and
without gradient checkpointing, by one process and by several that share the weights.

    python benchmarks/learning_memory.py --sizes 10M 100M --length 256

Every case runs in fresh processes. Measured is by how much the memory of the first process grows
from before the model is loaded, libraries having been used once, to the peak of learning: on a GPU
what torch has allocated, else resident memory (VmHWM, which Linux has). What loading takes in
passing is not counted. The time of a step is that of the last one.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from random_llama import SHAPES, memory, write_llama

from disp_llm.config.learning import TrainingConfig
from disp_llm.config.parts import MachineConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.data.windows import Corpus
from disp_llm.masks.budget import Budget
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.devices import start_process
from disp_llm.models.loading import load
from disp_llm.models.sharding import Sharding
from disp_llm.runs.folder import Run
from disp_llm.runs.job import Job, Process
from disp_llm.runs.provenance import hardware, versions
from disp_llm.training.learning import learn
from disp_llm.training.memory import learning_memory
from disp_llm.training.problem import PruningProblem


def main() -> None:
    """Runs all cases and prints one line of JSON for each."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--sizes", nargs="+", default=["10M", "100M"], choices=list(SHAPES))
    asked.add_argument("--length", type=int, default=256)
    asked.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    asked.add_argument("--steps", type=int, default=2)
    asked.add_argument("--device", default="cpu", help="auto: a GPU, where there is one")
    asked.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    asked.add_argument("--checkpointed", nargs="+", default=["no", "yes"], choices=["no", "yes"])
    asked.add_argument("--child", default="", help=argparse.SUPPRESS)
    asked.add_argument("--checkpointing", default="no", help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.child:
        child(given)
        return
    for size in given.sizes:
        with tempfile.TemporaryDirectory() as folder:
            for shape, place in ((size, Path(folder)), ("tiny", Path(folder) / "tiny")):
                write_llama(shape, place, getattr(torch, given.dtype), shard="200MB")
            torch.cuda.empty_cache()  # for the processes that learn
            for processes in given.processes:
                for checkpointing in given.checkpointed:
                    print(run(folder, processes, checkpointing), flush=True)


def run(folder: str, processes: int, checkpointing: str) -> str:
    """One case: what its first process prints."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", str(processes), *sys.argv]
    command += ["--child", folder, "--checkpointing", checkpointing]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return next(line for line in done.stdout.splitlines() if line.startswith("{"))


def child(given: argparse.Namespace) -> None:
    """Takes the steps, and prints what was counted and measured."""
    torch.set_num_threads(1)
    process = start_process(MachineConfig(device=given.device, dtype=given.dtype))
    learned(given, process, f"{given.child}/tiny")  # loads what libraries load when they are used
    gc.collect()
    before = taken(process.device)
    target, config, seconds = learned(given, process, given.child)
    measured = peak(process.device) - before
    counted = learning_memory(target, config, process.count, target.dtype.itemsize)
    figures = {
        "parameters": target.parameters,
        "dtype": given.dtype,
        "length": given.length,
        "processes": process.count,
        "checkpointing": given.checkpointing,
        "counted_mb": round(counted.total / 1e6, 1),
        "measured_mb": round(measured / 1e6, 1),
        "counted_over_measured": round(counted.total / measured, 3),
        "parts_mb": {key: round(value / 1e6, 1) for key, value in vars(counted).items()},
        "step_s": round(seconds, 3),
        "hardware": hardware(),
        "versions": versions(),
    }
    if process.is_main:
        print(json.dumps(figures))
    process.accelerator.end_training()


def learned(
    given: argparse.Namespace, process: Process, folder: str
) -> tuple[PrunableModel, PruneConfig, float]:
    """Loads a model as is asked for and takes the steps, the seconds of the last of which are the
    third result; the peak begins when it is loaded."""
    machine = MachineConfig(device=str(process.device), dtype=given.dtype)
    if process.count > 1:
        loaded = Sharding.among(process).load(folder, machine)
    else:
        loaded = load(folder, machine)
        for parameter in loaded.model.parameters():  # which may be mapped from the files
            parameter.data = parameter.data.clone()
    target = PrunableModel.of(loaded)
    training = TrainingConfig(
        length=given.length, batch=1, compile="no", gradient_checkpointing=given.checkpointing
    )
    config = PruneConfig(folder, machine=machine, training=training)
    tokens = torch.randint(1, target.model.config.vocab_size, (20_000,))
    reset(process.device)
    times: list[float] = []

    def on_step(stage: str, done: int, total: int, figures: dict) -> None:
        times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as run:
        job = Job(config, Run(Path(run)), process, on_step)
        budget = Budget(target.layout)
        problem = PruningProblem(target, Corpus((tokens,)), budget, (0.5,), 1, job)
        start = torch.randn(target.layout.entries, device=target.device)
        learn(problem, start, steps=given.steps)
    return target, config, times[-1] - times[-2] if len(times) > 1 else 0.0


def taken(device: torch.device) -> int:
    """Bytes that this process has now."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else memory("VmRSS")


def peak(device: torch.device) -> int:
    """The most that it has had since `reset`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory("VmHWM")


def reset(device: torch.device) -> None:
    """Lets the peak begin anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
