"""`benchmarks/gpu.sh`, which is for machines with GPUs, with tiny models on a processor."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.proof, pytest.mark.timeout(1800)]

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    found = os.pathsep.join(
        filter(None, (str(SCRIPT.parents[1] / "src"), os.environ.get("PYTHONPATH")))
    )
    return subprocess.run(
        ["sh", str(SCRIPT), str(folder), "--tiny", *arguments],
        capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": found},
    )  # fmt: skip


def read(path: Path) -> list[dict]:
    """Figures of a piece: one object in several lines, or one in each."""
    text = path.read_text()
    try:
        return [json.loads(text)]
    except json.JSONDecodeError:
        return [json.loads(line) for line in text.splitlines()]


def test_every_piece_gives_figures(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr + "".join(
        path.read_text()[-1500:] for path in tmp_path.glob("*.log")
    )
    pieces = {path.stem: read(path) for path in tmp_path.glob("*.jsonl")}
    assert set(pieces) == {
        "demo", "learn", "learn-sharded", "export",
        "speed-small", "speed-small-compiled", "speed-large", "speed-large-compiled",
    }  # fmt: skip
    for name, (figures,) in pieces.items():
        assert figures["hardware"]["cpu"], name
        assert figures["versions"]["torch"], name
    for name, processes in (("learn", 1), ("learn-sharded", 2)):
        (figures,) = pieces[name]
        assert figures["processes"] == processes
        assert figures["measured_mb"] > 0
        assert figures["step_s"] > 0
    for name in ("speed-small", "speed-large-compiled"):
        (figures,) = pieces[name]
        assert figures["compiled"] == name.endswith("compiled")
        prefill, decode = figures["comparisons"]
        assert min(*prefill["tflops_per_s"], *decode["gigabytes_per_s"]) > 0
    again = run(tmp_path)
    assert again.returncode == 0
    assert again.stderr == ""  # every piece is there


def test_a_piece_that_fails_says_so(tmp_path):
    done = run(tmp_path, "learm")
    assert done.returncode == 1
    assert f"learm: failed, see {tmp_path}/learm.log" in done.stderr
    assert not list(tmp_path.glob("*.jsonl"))
