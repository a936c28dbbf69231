"""A model that is larger than the memory that its process may take is pruned to the end when its
weights wait in the files."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, environment, random_weights
from transformers import AutoModelForCausalLM, LlamaConfig

pytestmark = [pytest.mark.proof, pytest.mark.timeout(1800)]

COMMAND = """
import os, sys
import accelerate, torch, transformers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
import disp_llm.cli.prune
from disp_llm.cli.main import main
with open(sys.argv.pop(1), "w") as file:
    file.write(str(os.getpid()))
main()
"""
"""Imports libraries, joins a control group, which counts what is taken from then on, and runs."""

GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "1048576"}
"""Lets the C library of Linux give the memory of freed weights back, in place of keeping it."""

LIMITS = (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max"))
"""Where control groups are made, and the file of their limit, by the version of Linux's."""

FLAGS = """
    --keep 0.5 --steps 2 --length 32 --batch 1 --calibration-sequences 2
    --calibration-length 32 --context 32 --windows 1 --rounds 0 --align 32 --adapter-rank 4
    --dtype float32 --device cpu --json
""".split()


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """280 MB of random weights in twelve blocks, stored in bfloat16: 560 MB in float32."""
    folder = tmp_path_factory.mktemp("large") / "model"
    config = LlamaConfig(
        hidden_size=1024,
        intermediate_size=2560,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=320,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    model = random_weights(AutoModelForCausalLM.from_config(config)).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="50MB")
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def group(large) -> Iterator[Path]:
    """A control group whose processes may take half of what the weights are in float32."""
    made = None
    for place, name in LIMITS:
        folder = Path(place) / f"disp-llm-{os.getpid()}"
        try:
            folder.mkdir()
            made = folder
            (folder / name).write_text(str(stored(large)))
            break
        except OSError:
            if made is not None:
                made.rmdir()
                made = None
    if made is None:
        pytest.skip("no control group with a limit of memory can be made here")
    yield made
    for _ in range(100):  # until the last process has left
        try:
            made.rmdir()
            break
        except OSError:
            time.sleep(0.1)


def stored(model: Path) -> int:
    """Bytes of its weights' files."""
    return sum(path.stat().st_size for path in model.glob("*.safetensors"))


def prune(
    model: Path, folder: Path, group: Path, *flags: object
) -> subprocess.CompletedProcess[str]:
    """`prune` in a process of that group."""
    command = [sys.executable, "-c", COMMAND, str(group / "cgroup.procs"), "prune", str(model)]
    return subprocess.run(
        [*command, *FLAGS, "--output-dir", str(folder), *map(str, flags)],
        capture_output=True, text=True, check=False, env=environment(**GIVEN_BACK),
    )  # fmt: skip


def test_it_is_pruned_to_the_end(large, group, text_file, tmp_path):
    """Held whole it does not fit, so that the limit is one."""
    whole = prune(large, tmp_path / "whole", group, "--text", text_file, "--shard", "no")
    assert whole.returncode == -signal.SIGKILL, whole.stderr[-2000:]
    fetched = prune(large, tmp_path / "fetched", group, "--text", text_file, "--offload", "disk")
    assert fetched.returncode == 0, fetched.stderr[-2000:]
    figures = json.loads(fetched.stdout)
    assert figures["status"] == "done"
    (made,) = figures["models"]
    assert 0.49 < made["keep"] <= 0.5
    assert made["max_logit_error"] < 1e-4
    print({"limit": stored(large), "parameters": made["parameters"], "s": figures["seconds"]})
