"""Every block of Python in docs/run.md, one after another, on a folder of a short run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_process
from environments import make_environment

pytestmark = [pytest.mark.proof, pytest.mark.timeout(1200)]

PAGE = Path(__file__).parents[2] / "docs" / "run.md"
CLOSE = 1e-3
"""Farthest from the logits in transformers, which are some tens, in float32."""


def test_every_block_of_the_page(tmp_path):
    flags = "--keep 0.8 --method fisher --calibration-sequences 4 --windows 2 --rounds 0".split()
    asked = ("prune", "smollm2-135m", "--text", "speeches", *flags)
    done = run_process(*asked, "--output-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    python = make_environment(
        tmp_path / "environment", "onnx", "onnxscript", "onnxruntime", "openvino",
        "executorch", beside=Path(sys.executable),
    )  # fmt: skip
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 4
    (tmp_path / "page.py").write_text("\n".join(blocks))
    done = subprocess.run(
        [python, "page.py"], cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "The capital of France is" in done.stdout
    errors = [float(one) for one in re.findall(r"tensor\(([\d.e-]+)", done.stdout)]
    assert len(errors) == 3
    assert all(error < CLOSE for error in errors), done.stdout
