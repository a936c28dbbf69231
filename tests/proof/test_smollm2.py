"""Slow proofs on the real model; `make proof`. Speed is not tested here but in benchmarks/."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
import transformers
from conftest import FEW, run_process
from safetensors.torch import load_file

from disp_llm.config.parts import MachineConfig
from disp_llm.models.loading import load

pytestmark = [pytest.mark.proof, pytest.mark.timeout(1800)]


def test_export_equals_masked(smollm2_run):
    _, result = smollm2_run
    half, whole = result["models"]
    assert half["logit_errors"]["max_logit_error_float32"] <= 1e-5
    of_the_run = f"max_logit_error_{result['dtype']}"  # float32 where bfloat16 is not native
    # A few units of bfloat16's 8-bit mantissa in 30 layers.
    assert half["logit_errors"][of_the_run] <= 0.05
    assert (
        whole["logit_errors"]["max_logit_error_float32"] == whole["logit_errors"][of_the_run] == 0
    )
    assert whole["measured"] == result["original"]["measured"]


def test_keep_one_is_bitwise_the_original(smollm2_run):
    folder, _ = smollm2_run
    dense = load("smollm2-135m", MachineConfig()).model
    exported = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "keep-1", dtype=dense.dtype
    )
    tokens = torch.randint(49152, (1, 300), generator=torch.Generator().manual_seed(0))
    assert torch.equal(exported(tokens).logits, dense(tokens).logits)


def test_budget_within_one_group_of_entries(smollm2_run):
    _, result = smollm2_run
    half, dense = result["models"][0], result["original"]
    entry = max(3 * 576, 2 * 1536, 576 + 2 * 192)  # of mlp_mid, mlp_in, attn_in
    largest = entry * half["align"]
    assert dense["block_parameters"] / 2 - largest < half["block_parameters"]
    assert half["block_parameters"] <= dense["block_parameters"] / 2


def test_kill_9_at_a_random_step_and_resume(smollm2_run, tmp_path):
    folder, _ = smollm2_run
    step = random.randint(2, 10)
    arguments = [
        "prune",
        "smollm2-135m",
        "--keep",
        0.5,
        1.0,
        "--output-dir",
        tmp_path / "run",
        *FEW,
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "disp_llm", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < step:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = run_process(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    ours, theirs = (load_file(f / "selection.safetensors") for f in (tmp_path / "run", folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs), f"killed at step {step}"


SCRIPT = """
import json, sys
if {without}:
    sys.modules["disp_llm"] = None
else:
    import disp_llm
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
arguments = {{"trust_remote_code": True}} if {without} else {{}}
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, **arguments)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], **arguments)
prompt = tokenizer("The president said that", return_tensors="pt")
tokens, slow = (
    model.generate(**prompt, max_new_tokens=24, do_sample=False, use_cache=cache).tolist()
    for cache in (True, False)
)
assert tokens == slow
print(json.dumps([model(**prompt).logits[0].tolist(), tokens]))
"""


def test_fresh_processes_agree(smollm2_run, tmp_path):
    folder, _ = smollm2_run
    found = []
    for without in (False, True):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(without=without), str(folder / "keep-0.5")],
            capture_output=True, text=True, timeout=600, check=False,
            env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[0] == found[1]  # logits and greedy tokens, to the bit
