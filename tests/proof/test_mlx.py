"""mlx-lm generates from a Nemotron-NAS folder what transformers generates from ours."""

import json
import subprocess

import pytest
import torch
import transformers
from environments import make_environment
from in_memory import blocks_that_differ

from disp_llm.commands.convert import convert

pytestmark = [pytest.mark.proof, pytest.mark.timeout(900)]

NEW_TOKENS = 16

SCRIPT = """
import json, sys
import mlx.core as mx
from pathlib import Path
from mlx_lm.utils import load_model
model, _ = load_model(Path(sys.argv[1]))
model.set_dtype(mx.float32)
found = []
for prompt in json.loads(sys.argv[2]):
    tokens = list(prompt)
    for _ in range(int(sys.argv[3])):
        tokens.append(int(mx.argmax(model(mx.array([tokens]))[0, -1]).item()))
    found.append(tokens[len(prompt):])
with open(sys.argv[4], "w") as file:
    json.dump(found, file)
"""


def test_blocks_that_differ(tmp_path):
    """Other widths, one block without attention and one without an MLP. Its CPU build runs them."""
    python = make_environment(tmp_path / "environment", "mlx[cpu]", "mlx-lm")
    folder, new = blocks_that_differ(tmp_path / "ours"), tmp_path / "new"
    convert(folder, to="nemotron-nas", output_dir=new)
    noise = torch.Generator().manual_seed(1)
    prompts = torch.randint(4, 250, (10, 12), generator=noise).tolist()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = None
    asked = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    answers = [model.generate(torch.tensor([prompt]), **asked)[0, 12:] for prompt in prompts]
    done = subprocess.run(
        [python, "-c", SCRIPT, new, json.dumps(prompts), str(NEW_TOKENS), tmp_path / "found.json"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == [answer.tolist() for answer in answers]
