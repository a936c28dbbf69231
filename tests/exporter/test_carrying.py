"""A smaller size takes from a larger one, of whatever architecture, all that both keep."""

from dataclasses import replace

import pytest
import torch
from conftest import masks_of, sites_with, tiny_model, tiny_prunable
from test_streaming import CASES, masks_for
from wrapping import tiny_wrapper

from disp_llm.exporter.carrying import carry, is_size
from disp_llm.exporter.cutting import compact_model, compact_state
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks
from disp_llm.models.architectures import FAMILIES, WRAPPERS

BUFFERS = ("kept_in", "kept_out")


def tiny(model_type: str, seed: int = 0) -> PrunableModel:
    """With KV heads, whole branches and whole experts as sites, where the family can lose them."""
    family = FAMILIES[model_type]
    make = tiny_wrapper if model_type in WRAPPERS else tiny_model
    sites = sites_with(family.can_lose_heads, True, family.experts is not None)
    return PrunableModel(make(model_type, seed=seed), family, sites)


def larger_than(smaller: Masks) -> Masks:
    """Masks that keep all that others keep, and of every expert one more dimension."""
    layout, kept = smaller.layout, smaller.kept.clone()
    for part, lanes in zip(layout.split(kept), layout.lanes, strict=True):
        for lane in part.view(lanes, -1):
            lane[lane.logical_not().nonzero()[:1].flatten()] = True
    return Masks(layout, kept, smaller.selection)


@pytest.mark.parametrize("model_type", CASES)
def test_what_both_keep_is_the_larger_ones(model_type):
    """What is carried from size to size is what is cut from the model itself."""
    dense, trained = tiny(model_type), tiny(model_type, seed=1)
    smaller = masks_for(dense)
    larger = larger_than(smaller)
    own, wanted = (compact_state(model, smaller) for model in (dense, trained))
    own = {name: tensor.clone() for name, tensor in own.items()}
    carry(dense, (larger, compact_state(trained, larger)), (smaller, own))
    assert own.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(own[name], tensor), name


def test_what_only_the_smaller_keeps_stays():
    """In whole multiples, a smaller size may keep an entry that a larger one has lost."""
    dense, trained = tiny_prunable("llama"), tiny_prunable("llama", seed=1)
    smaller = masks_of("random", dense.layout)
    other = replace(smaller, kept=masks_of("random", dense.layout, seed=1).kept)
    own = {name: tensor.clone() for name, tensor in compact_state(dense, smaller).items()}
    carry(dense, (other, compact_state(trained, other)), (smaller, own))
    name = "model.layers.1.mlp.down_proj.weight"
    rows, columns = (
        (smaller.indices()[f"layers.1.{site}"], other.indices()[f"layers.1.{site}"])
        for site in ("mlp_out", "mlp_mid")
    )
    both = torch.isin(*rows)[:, None] & torch.isin(*columns)
    assert both.any()
    assert not both.all()
    before, after = (compact_state(one, smaller)[name] for one in (dense, trained))
    assert torch.equal(own[name], torch.where(both, after, before))


@pytest.mark.parametrize("changed", ["nothing", "a width", "an index", "a layer"])
def test_a_model_of_other_masks_is_known(changed):
    dense = tiny_prunable("llama")
    masks = masks_of("random", dense.layout)
    state = compact_model(dense, masks).state_dict()
    if changed == "a width":
        state["model.layers.0.mlp.up_proj.weight"] = state["model.layers.0.mlp.up_proj.weight"][1:]
    elif changed == "an index":
        name = next(name for name in state if name.endswith(BUFFERS))
        state[name] = state[name].flip(0)
    elif changed == "a layer":
        state = {name: tensor for name, tensor in state.items() if "layers.1." not in name}
    assert is_size(dense, masks, state) == (changed == "nothing")
