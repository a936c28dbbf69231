"""An exported folder loads, and computes the same, on the oldest and the newest transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from conftest import environment
from environments import make_environment

pytestmark = [pytest.mark.proof, pytest.mark.timeout(1800)]

SCRIPT = """
import json, sys
import torch, transformers
assert "disp_llm" not in sys.modules
model = transformers.AutoModelForCausalLM.from_pretrained(
    sys.argv[1], trust_remote_code=True, dtype=torch.float32
)
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
prompt = tokenizer("The president said that", return_tensors="pt")
tokens = model.generate(**prompt, max_new_tokens=16, do_sample=False, pad_token_id=0)
found = dict(version=transformers.__version__, tokens=tokens[0].tolist(),
             logits=model(**prompt).logits[0].tolist())
with open(sys.argv[2], "w") as file:
    json.dump(found, file)
"""


@pytest.mark.parametrize("requirement", ["transformers==5.15.*", "transformers"])
def test_folder_loads_without_the_package(requirement, smollm2_run, tmp_path):
    folder = smollm2_run[0] / "model"
    python = make_environment(
        tmp_path / "environment", "--upgrade", requirement, beside=Path(sys.executable)
    )
    done = subprocess.run(
        [python, "-c", SCRIPT, folder, tmp_path / "found.json"], capture_output=True, text=True,
        timeout=600, check=False, env=environment(HF_MODULES_CACHE=str(tmp_path / "modules")),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    if "==" in requirement:
        assert found["version"].startswith("5.15.")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("The president said that", return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=16, do_sample=False, pad_token_id=0)
    assert found["tokens"] == tokens[0].tolist()
    torch.testing.assert_close(
        torch.tensor(found["logits"]), model(**prompt).logits[0], rtol=1e-4, atol=1e-4
    )
