"""Scoring, learning, evaluation and the cut on a device that is not the processor: a tensor that is
left on the other one fails here, without a GPU."""

import json

import fresh
import pytest
from torch.utils import backend_registration

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no devices that are written in Python",
)

SCRIPT = """
import contextlib, json, sys, tempfile, torch
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import problem_of, with_config
from second_device import NAME, Elsewhere, second_device
from disp_llm.config.learning import LearnConfig, TrainingConfig
from disp_llm.config.parts import PerplexityConfig
from disp_llm.evaluation.perplexity import perplexity
from disp_llm.exporter.cutting import compact_state
from disp_llm.exporter.cutting import fold_into_weights
from disp_llm.masks.budget import project
from disp_llm.masks.masking import Masking, masked
from disp_llm.masks.selection import Masks
from disp_llm.methods import method_named
from disp_llm.runs.job import Process
from disp_llm.training.learning import learn

text = "".join(f"Line {i}: the square of {i} is {i * i}. " for i in range(200))
training = TrainingConfig(length=24, batch=2, distill=0.5, compile="no")
learning = LearnConfig(adapter_rank=2)

def made(device):
    problem = with_config(
        problem_of("llama", text, Path(tempfile.mkdtemp())), training=training, learn=learning
    )
    problem.dense.model.to(device)
    process = replace(problem.job.process, device=torch.device(device))
    problem = replace(problem, job=replace(problem.job, process=process))
    dense, budget, layout = problem.dense, problem.budget, problem.dense.layout
    assert dense.device.type == torch.device(device).type
    start = method_named("fisher").choose(problem).importance
    selection = learn(problem, start, steps=3)
    kept = project(selection.importance, budget, 0.6, 1).kept
    masks = Masks(layout, kept.cpu(), selection.on_cpu())
    with fold_into_weights(dense, masks), masked(dense) as masking:
        masking.set(kept.float())
        stream = problem.corpus.streams[0][:200]
        found = perplexity(dense, stream, PerplexityConfig(context=24, windows=4)).perplexity
        state = compact_state(dense, masks)
    assert all(isinstance(one, Elsewhere) == (device != "cpu")
               for name, one in state.items() if name.endswith("weight")), device
    return start.cpu(), selection.importance.cpu(), found, {n: t.cpu() for n, t in state.items()}

with second_device():  # first, since a backward pass fixes which devices there are
    if sys.argv[2]:  # somebody forgets a device
        {planted}
    there = made(NAME)
here = made("cpu")
torch.testing.assert_close(there[0], here[0], rtol=1e-4, atol=1e-5)
torch.testing.assert_close(there[1], here[1], rtol=1e-4, atol=1e-4)
for name, tensor in here[3].items():
    torch.testing.assert_close(there[3][name], tensor, rtol=1e-4, atol=1e-4)
print(json.dumps([here[2], there[2]]))
"""

PLANTED = {
    "": "pass",
    "masks": "set = Masking.set; Masking.set = lambda self, flat, *more: set(self, flat.cpu())",
    "windows": (
        "import disp_llm.training.losses as losses; states = losses._states; "
        "losses._states = lambda target, windows: states(target, windows.to(torch.device('cpu')))"
    ),
}


def run(request, planted: str):
    script = SCRIPT.replace("{planted}", PLANTED[planted])
    return fresh.run(script, request.config.rootpath / "tests", planted)


def test_both_devices_give_the_same(request):
    done = run(request, "")
    assert done.returncode == 0, done.stderr[-3000:]
    here, there = json.loads(done.stdout.splitlines()[-1])
    assert here == pytest.approx(there, rel=1e-4)


@pytest.mark.parametrize("planted", ["masks", "windows"])
def test_a_tensor_on_the_wrong_device_is_seen(planted, request):
    done = run(request, planted)
    assert done.returncode == 1
    assert "tensors on two devices" in done.stderr
