"""Checkpoints: what was written is what is read, and of a damaged one nothing is."""

import copy

import pytest
import torch
from damage import BYTES, names, outcome, rewrite, tensors_of
from safetensors.torch import save_file
from torch import nn

from disp_llm.runs.tensors import tensors_sha256
from disp_llm.training.checkpoints import checkpoints, restore, save, whole_tensors


class State(nn.Module):
    """Logits, and a buffer that is not a number before it is first used."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(5))
        self.register_buffer("baseline", torch.tensor(torch.nan))


def trained(steps: int, folder=None) -> tuple[State, torch.optim.Optimizer]:
    """A state after so many steps, each of which has left a checkpoint."""
    torch.manual_seed(0)
    state = State()
    optimizer = torch.optim.AdamW(state.parameters(), lr=0.1)
    for step in range(1, steps + 1):
        (state.logits - torch.randn(5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if folder is not None:
            save(folder, {"step": str(step)}, whole_tensors(state, [optimizer]))
    return state, optimizer


@pytest.fixture
def folder(tmp_path):
    trained(3, tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == [
        "step-0000002.safetensors",
        "step-0000003.safetensors",
    ]
    return tmp_path


CHANGES = {
    "a parameter is missing": {"trained__logits": None},
    "a moment is missing": {"optimizer__0__0__exp_avg": None},
    "another parameter": {"trained__other": torch.zeros(5)},
    "a moment of nothing": {"optimizer__0__7__exp_avg": torch.zeros(5)},
    "another kind of moment": {"optimizer__0__0__momentum": torch.zeros(5)},
    "of another shape": {"trained__logits": torch.zeros(6)},
    "of another dtype": {"trained__logits": torch.zeros(5, dtype=torch.float64)},
    "not finite": {"trained__logits": torch.full((5,), torch.nan)},
    "a moment of another shape": {"optimizer__0__0__exp_avg_sq": torch.zeros(5, 1)},
    "a moment that is not finite": {"optimizer__0__0__exp_avg": torch.full((5,), torch.inf)},
    "a count of another shape": {"optimizer__0__0__step": torch.zeros(2)},
}


def assert_refused_and_unread(folder, path):
    """One line; the state is as it was; after what the hint says, the one before it serves."""
    state, optimizer = trained(0)
    found = outcome(lambda: restore(folder, state, [optimizer]))
    assert names(found, path)
    assert not state.logits.any()
    assert not optimizer.state_dict()["state"]
    path.unlink()
    assert restore(folder, state, [optimizer])["step"] == "2"
    assert torch.equal(state.logits, trained(2)[0].logits)


@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize("what", CHANGES)
def test_a_tensor_that_is_not_as_declared(folder, what, hashed):
    path = checkpoints(folder)[-1]
    rewrite(path, **CHANGES[what])
    if hashed:
        tensors, facts = tensors_of(path)
        save_file(tensors, path, metadata=facts | {"sha256": tensors_sha256(tensors)})
    assert_refused_and_unread(folder, path)


@pytest.mark.parametrize("how", BYTES)
def test_a_damaged_file(folder, how):
    path = checkpoints(folder)[-1]
    path.write_bytes(BYTES[how](path.read_bytes()))
    assert_refused_and_unread(folder, path)


@pytest.mark.parametrize("metadata", [{"step": "2"}, {"step": "x"}, {"step": ""}, {}])
def test_a_step_that_is_not_the_one_of_the_name(folder, metadata):
    path = checkpoints(folder)[-1]
    tensors, whole = tensors_of(path)
    rest = {key: value for key, value in whole.items() if key != "step"}
    save_file(tensors, path, metadata=rest | metadata)
    assert_refused_and_unread(folder, path)


def test_a_whole_checkpoint_gives_everything_back(folder):
    state, optimizer = trained(0)
    whole, moments = trained(3)
    assert restore(folder, state, [optimizer])["step"] == "3"
    assert torch.equal(state.logits, whole.logits)
    assert state.baseline.isnan()  # as it is before its first use
    found, wanted = (copy.deepcopy(o.state_dict()["state"]) for o in (optimizer, moments))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[0][key], wanted[0][key]) for key in wanted[0])
