"""Counted against measured peak memory of learning: random Llamas, with and without gradient
checkpointing, by one process and by two that share the weights.

    python benchmarks/learning_memory.py --sizes 10M 100M --length 256

Every case runs in fresh processes. Measured is what the resident memory of the first process grows
by from before the model is loaded, libraries having been used once, to the peak of learning (VmHWM,
which Linux has); what loading takes in passing is not counted.
"""

import argparse
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

SIZES = {"10M": (256, 704, 8, 4, 8000), "100M": (768, 2048, 12, 12, 8000)}
SIZES["400M"] = (1024, 2816, 28, 16, 32000)
"""Width, intermediate width, blocks, heads, vocabulary."""


def main() -> None:
    """Runs all cases and prints one line of JSON for each."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--sizes", nargs="+", default=["10M", "100M"], choices=list(SIZES))
    asked.add_argument("--length", type=int, default=256)
    asked.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    asked.add_argument("--base-precision", default="same")
    asked.add_argument("--offload", default="no")
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
            make(SIZES[size], Path(folder))
            make((64, 176, 2, 4, 512), Path(folder) / "tiny")
            for processes in given.processes:
                for checkpointing in given.checkpointed:
                    print(run(folder, processes, checkpointing), flush=True)


def make(shape: tuple[int, ...], folder: Path) -> None:
    """A folder of random weights, and a tokenizer that nobody uses."""
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
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="200MB")
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
    """Takes two steps, and prints what was counted and measured."""
    import torch

    from disp_llm.config.parts import MachineConfig
    from disp_llm.models.devices import start_process
    from disp_llm.training.memory import learning_memory

    torch.set_num_threads(1)
    process = start_process(MachineConfig(device="cpu", dtype=given.dtype))
    learned(given, process, f"{given.child}/tiny")  # loads what libraries load when they are used
    gc.collect()
    before = memory("VmRSS")
    target, config = learned(given, process, given.child)
    measured = memory("VmHWM") - before
    counted = learning_memory(target, config, config.frozen, process.count, target.dtype.itemsize)
    figures = {
        "parameters": target.parameters,
        "dtype": given.dtype,
        "length": given.length,
        "processes": process.count,
        "checkpointing": given.checkpointing,
        "base_precision": given.base_precision,
        "offload": given.offload,
        "counted_mb": round(counted.total / 1e6, 1),
        "measured_mb": round(measured / 1e6, 1),
        "counted_over_measured": round(counted.total / measured, 3),
        "parts_mb": {key: round(value / 1e6, 1) for key, value in vars(counted).items()},
    }
    print(json.dumps(figures))
    process.accelerator.end_training()


def learned(given: argparse.Namespace, process: Any, folder: str) -> tuple[Any, Any]:
    """Loads a model as is asked for and takes two steps; the peak begins when it is loaded."""
    import torch

    from disp_llm.config.frozen import FrozenConfig
    from disp_llm.config.learning import LearnConfig, TrainingConfig
    from disp_llm.config.parts import MachineConfig
    from disp_llm.config.prune import PruneConfig
    from disp_llm.data.tokens import Corpus
    from disp_llm.masks.budget import Budget
    from disp_llm.masks.prunable import PrunableModel
    from disp_llm.models.fetching import Fetching
    from disp_llm.models.loading import load
    from disp_llm.models.sharding import Sharding
    from disp_llm.runs.folder import Run
    from disp_llm.runs.job import Job
    from disp_llm.training.learning import learn
    from disp_llm.training.problem import PruningProblem

    machine = MachineConfig(device="cpu", dtype=given.dtype)
    frozen = FrozenConfig("no", given.base_precision, given.offload)
    if process.count > 1:
        frozen = replace(frozen, shard="full")
        loaded = Sharding.among(process, "full").load(folder, machine)
    elif frozen.is_fetched:
        loaded = Fetching(process, frozen).load(folder, machine)
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
    config = PruneConfig(folder, machine=machine, learn=learning, training=training, frozen=frozen)
    tokens = torch.randint(1, target.model.config.vocab_size, (20_000,))
    reset()
    with tempfile.TemporaryDirectory() as run:
        job = Job(config, Run(Path(run)), process)
        budget = Budget(target.layout)
        problem = PruningProblem(target, Corpus((tokens,)), budget, (0.5,), 1, job)
        learn(problem, torch.randn(target.layout.entries), steps=2)
    return target, config


def memory(key: str) -> int:
    """Bytes that Linux gives under a key."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def reset() -> None:
    """Lets the peak of resident memory begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
