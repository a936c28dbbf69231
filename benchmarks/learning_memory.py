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
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIZES = {"10M": (256, 704, 8, 4, 8000), "100M": (768, 2048, 12, 12, 8000)}
SIZES |= {"400M": (1024, 2816, 28, 16, 32000), "1B": (2048, 5504, 24, 16, 32000)}
SIZES |= {"7B": (4096, 11008, 32, 32, 32000), "tiny": (64, 176, 2, 4, 512)}
"""Width, intermediate width, blocks, heads, vocabulary."""


def main() -> None:
    """Runs all cases and prints one line of JSON for each."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--sizes", nargs="+", default=["10M", "100M"], choices=list(SIZES))
    asked.add_argument("--length", type=int, default=256)
    asked.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    asked.add_argument("--steps", type=int, default=2)
    asked.add_argument("--device", default="cpu", help="auto: a GPU, where there is one")
    asked.add_argument("--adapter-rank", type=int, default=16)
    asked.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    asked.add_argument("--checkpointed", nargs="+", default=["no", "yes"], choices=["no", "yes"])
    asked.add_argument("--distill", type=float, default=0.5)
    asked.add_argument("--child", default="", help=argparse.SUPPRESS)
    asked.add_argument("--checkpointing", default="no", help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.child:
        child(given)
        return
    for size in given.sizes:
        with tempfile.TemporaryDirectory() as folder:
            make(SIZES[size], Path(folder), given.dtype)
            make(SIZES["tiny"], Path(folder) / "tiny", given.dtype)
            for processes in given.processes:
                for checkpointing in given.checkpointed:
                    print(run(folder, processes, checkpointing), flush=True)


def make(shape: tuple[int, ...], folder: Path, dtype: str) -> None:
    """A folder of random weights, and a tokenizer that nobody uses; a GPU, where there is one,
    draws large models in seconds."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    hidden, intermediate, layers, heads, vocabulary = shape
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size="200MB")
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # for the processes that learn
    backend = Tokenizer(models.BPE(vocab={"<s>": 0}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>").save_pretrained(folder)


def run(folder: str, processes: int, checkpointing: str) -> str:
    """One case: what its first process prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *sys.argv, "--child", folder, "--checkpointing", checkpointing]
    started = []
    for rank in range(processes):
        env = {"WORLD_SIZE": processes, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
        env = {key: str(value) for key, value in env.items()} | {"MASTER_ADDR": "127.0.0.1"}
        pipe = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
        started.append(subprocess.Popen(command, env=os.environ | env, stdout=pipe, text=True))
    out, _ = started[0].communicate()
    for one in started:
        if one.wait():
            raise SystemExit(f"{folder}: a process has failed")
    return out.strip().splitlines()[-1]


def child(given: argparse.Namespace) -> None:
    """Takes the steps, and prints what was counted and measured."""
    import torch

    from disp_llm.config.parts import MachineConfig
    from disp_llm.models.devices import start_process
    from disp_llm.runs.provenance import hardware, versions
    from disp_llm.training.memory import learning_memory

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
    print(json.dumps(figures))
    process.accelerator.end_training()


def learned(given: argparse.Namespace, process: Any, folder: str) -> tuple[Any, Any, float]:
    """Loads a model as is asked for and takes the steps, the seconds of the last of which are the
    third result; the peak begins when it is loaded."""
    import torch

    from disp_llm.config.learning import LearnConfig, TrainingConfig
    from disp_llm.config.parts import MachineConfig
    from disp_llm.config.prune import PruneConfig
    from disp_llm.data.windows import Corpus
    from disp_llm.masks.budget import Budget
    from disp_llm.masks.prunable import PrunableModel
    from disp_llm.models.loading import load
    from disp_llm.models.sharding import Sharding
    from disp_llm.runs.folder import Run
    from disp_llm.runs.job import Job
    from disp_llm.training.learning import learn
    from disp_llm.training.problem import PruningProblem

    machine = MachineConfig(device=str(process.device), dtype=given.dtype)
    if process.count > 1:
        loaded = Sharding.among(process).load(folder, machine)
    else:
        loaded = load(folder, machine)
        for parameter in loaded.model.parameters():  # which may be mapped from the files
            parameter.data = parameter.data.clone()
    target = PrunableModel.of(loaded)
    training = TrainingConfig(
        length=given.length,
        batch=1,
        compile="no",
        distill=given.distill,
        gradient_checkpointing=given.checkpointing,
    )
    learning = LearnConfig(adapter_rank=given.adapter_rank)
    config = PruneConfig(folder, machine=machine, learn=learning, training=training)
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


def memory(key: str) -> int:
    """Bytes that Linux gives under a key."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def taken(device: Any) -> int:
    """Bytes that this process has now."""
    import torch

    return torch.cuda.memory_allocated(device) if device.type == "cuda" else memory("VmRSS")


def peak(device: Any) -> int:
    """The most that it has had since `reset`."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory("VmHWM")


def reset(device: Any) -> None:
    """Lets the peak begin anew."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
