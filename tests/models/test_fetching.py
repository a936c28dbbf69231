"""Models whose blocks get their weights when they run: the same numbers, fewer bytes."""

import pytest
import torch
from configurations import DENSE_KINDS, cases
from conftest import byte_tokenizer, masks_of, one_process, sites_with
from wrapping import tiny_of

from disp_llm.config.frozen import FrozenConfig
from disp_llm.config.parts import MachineConfig
from disp_llm.masks.masking import masked
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.fetching import Fetching
from disp_llm.models.loading import load
from disp_llm.models.rounding import int8, nf4
from disp_llm.training.blocks import checkpointed_blocks
from disp_llm.training.losses import token_losses

MACHINE = MachineConfig(device="cpu", dtype="float32")


def saved(name: str, folder) -> str:
    tiny_of(name).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def gradient(target: PrunableModel, seed: int = 0) -> torch.Tensor:
    tokens = torch.randint(5, 200, (2, 24), generator=torch.Generator().manual_seed(0))
    leaf = masks_of("random", target.layout, seed).kept.float().requires_grad_()
    with masked(target) as masking, checkpointed_blocks(target, True):
        masking.set(leaf)
        token_losses(target, tokens).mean().backward()
    assert leaf.grad is not None
    return leaf.grad


def matrices(target: PrunableModel) -> list[torch.Tensor]:
    return [linear.weight for linear in target.linears()]


@pytest.mark.parametrize(
    "name", cases([*DENSE_KINDS, "llama4_text", "gemma3", "gemma4", "smolvlm", "qwen2_5_vl"])
)
@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_offloading_changes_nothing(name, offload, tmp_path):
    folder = saved(name, tmp_path)
    whole = PrunableModel.of(load(folder, MACHINE))
    fetching = Fetching(one_process(), FrozenConfig(offload=offload))
    fetched = PrunableModel.of(fetching.load(folder, MACHINE))
    assert whole.is_whole
    assert not fetched.is_whole
    assert (fetched.layout, fetched.parameters) == (whole.layout, whole.parameters)
    assert torch.equal(gradient(fetched), gradient(whole))
    assert all(weight.is_meta for weight in matrices(fetched))  # also after a pass
    for key, buffer in fetched.model.named_buffers():
        assert torch.equal(buffer, whole.model.get_buffer(key)), key
    prompt = torch.tensor([[5, 60, 7]])
    made = [
        target.model.generate(prompt, max_new_tokens=5, do_sample=False, pad_token_id=0)
        for target in (whole, fetched)
    ]
    assert torch.equal(*made)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "llama4_text"])
@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_tokens_choose_among_kept_experts_whose_router_is_fetched(name, offload, tmp_path):
    folder, sites = saved(name, tmp_path), sites_with(experts=True)
    whole = PrunableModel.of(load(folder, MACHINE), sites)
    fetching = Fetching(one_process(), FrozenConfig(offload=offload))
    fetched = PrunableModel.of(fetching.load(folder, MACHINE), sites)
    for seed in (0, 1):
        assert torch.equal(gradient(fetched, seed), gradient(whole, seed))


@pytest.mark.parametrize(("precision", "most"), [("bfloat16", 0.02), ("int8", 0.06), ("nf4", 0.5)])
def test_fewer_bits_are_near_and_the_original_is_there_for_measuring(precision, most, tmp_path):
    folder = saved("llama", tmp_path)
    whole = PrunableModel.of(load(folder, MACHINE))
    fetching = Fetching(one_process(), FrozenConfig(base_precision=precision))
    fetched = PrunableModel.of(fetching.load(folder, MACHINE))
    wanted, found = gradient(whole), gradient(fetched)
    assert 0 < float((found - wanted).norm() / wanted.norm()) < most
    assert torch.equal(fetching.lead(lambda: gradient(fetched)), wanted)
    assert torch.equal(gradient(fetched), found)


def test_rounding_is_to_the_nearest_and_takes_the_bits_it_says():
    weight = torch.randn(48, 40, generator=torch.Generator().manual_seed(0))
    groups = weight.flatten().view(-1, 64)
    largest = groups.abs().amax(1, keepdim=True)
    for rounding, bytes_each, step in ((int8, 1.0, 1 / 127), (nf4, 0.5, 0.31)):
        rounded = rounding(weight)
        assert rounded.nbytes == weight.numel() * bytes_each + len(groups) * 2
        back = rounded.weight()
        assert back.shape == weight.shape
        errors = (back - weight).flatten().view(-1, 64).abs() / largest
        assert errors.max() <= step / 2 + 0.005  # scales are bfloat16
    assert torch.equal(int8(torch.zeros(3, 5)).weight(), torch.zeros(3, 5))
    assert torch.equal(nf4(torch.zeros(3, 5)).weight(), torch.zeros(3, 5))
