"""Mixtures of experts in the budget, and masked: what their sites are, and who is routed where."""

import pytest
import torch
from configurations import VOCABULARY
from conftest import masks_of, run_in, tiny_prunable

from disp_llm.config.errors import InputError
from disp_llm.config.names import EXPERTS, SITES
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.masking import masked
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks, Selection
from disp_llm.masks.selection_file import add_masks, load_masks, save_selection

ALL_SITES = (*SITES, EXPERTS)


def random_scores(target: PrunableModel, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(target.layout.entries, generator=generator)


@pytest.mark.parametrize("share", [0.9, 0.6, 0.35])
@pytest.mark.parametrize("align", [1, 8])
def test_every_expert_keeps_as_many_and_those_that_a_token_chooses_stay(share, align):
    target = tiny_prunable("qwen3_moe", experts=True)
    budget = Budget(target.layout, sites=ALL_SITES)
    kept = project(random_scores(target), budget, share, align).kept
    counts = target.layout.counts(kept.long())
    assert float(budget.keep(counts)) <= share
    sites = zip(target.layout.names, target.layout.split(kept), target.layout.lanes, strict=True)
    for name, part, lanes in sites:
        of_lanes = part.view(lanes, -1).sum(1)
        assert (of_lanes == of_lanes[0]).all()
        if name.endswith("mlp_mid"):
            assert of_lanes[0] % align == 0
    experts = Masks(target.layout, kept, Selection(kept.float())).widths[EXPERTS]
    assert experts[1] == 1  # the dense block
    assert min(experts[0], experts[2]) >= 2


def test_the_best_dimensions_of_each_expert_are_kept():
    target = tiny_prunable("mixtral")
    scores = random_scores(target)
    kept = project(scores, Budget(target.layout, sites=("mlp_mid",)), 0.5).kept
    place = target.layout.names.index("layers.1.mlp_mid")
    of_site, mask = (target.layout.split(part)[place].view(6, -1) for part in (scores, kept))
    for numbers, chosen in zip(of_site, mask, strict=True):
        assert numbers[chosen].min() > numbers[~chosen].max()


def test_uniform_masks_have_one_width_and_one_number_of_experts():
    target = tiny_prunable("qwen3_moe", experts=True)
    budget = Budget(target.layout, sites=("mlp_mid", EXPERTS), uniform=True)
    for seed, share in ((0, 0.8), (1, 0.6), (2, 0.4)):
        kept = project(random_scores(target, seed), budget, share).kept
        masks = Masks(target.layout, kept, Selection(kept.float()))
        widths = masks.widths
        assert float(budget.keep(masks.counts)) <= share
        assert widths[EXPERTS][0] == widths[EXPERTS][2]
        assert widths["mlp_mid"][0] == widths["mlp_mid"][2]
        assert all(width == 32 for site in ("attn_in", "mlp_out") for width in widths[site])


def test_a_token_uses_the_experts_that_it_chooses():
    target = tiny_prunable("qwen2_moe", experts=True)
    budget = Budget(target.layout, sites=ALL_SITES)
    counts = torch.tensor(target.layout.lengths)
    attention = 3 * (32 * 64 + 32 * 32)
    of_expert = 3 * 24 * 32
    mixture = 2 * of_expert + 6 * 32 + 3 * 20 * 32 + 32  # experts, router, shared expert, its gate
    assert budget.active_parameters(counts) == attention + 2 * mixture + 3 * 48 * 32
    assert budget.dense_block_parameters == target.block_parameters
    fewer = counts.clone()
    fewer[target.layout.names.index("layers.0.experts")] -= 3  # rows of the router are what is less
    assert budget.active_parameters(counts) - budget.active_parameters(fewer) == 3 * 32
    left = budget.dense_block_parameters - int(budget.block_parameters(fewer))
    assert left == 3 * (of_expert + 32)


def test_groups_of_experts_stay_whole():
    target = tiny_prunable("glm4_moe", experts=True, n_group=2, topk_group=1, n_routed_experts=8)
    with pytest.raises(InputError, match="divides them into 2 groups"):
        _ = target.layout
    target = tiny_prunable("glm4_moe", n_group=2, topk_group=1, n_routed_experts=8)
    assert target.layout.blocks[2].experts == 8


def test_a_masks_file_whose_experts_differ_is_refused(tmp_path):
    target = tiny_prunable("mixtral")
    masks = masks_of("random", target.layout)
    path = run_in(tmp_path).selection_file
    save_selection(path, masks.selection, target.layout, {"0.5": masks})
    assert torch.equal(load_masks(path, target.layout, "0.5").kept, masks.kept)
    place = target.layout.names.index("layers.0.mlp_mid")
    part = target.layout.split(masks.kept)[place]
    part[part.nonzero()[0]] = False
    add_masks(path, masks, "0.5", path)
    with pytest.raises(InputError, match=r"layers\.0\.mlp_mid differs between experts"):
        load_masks(path, target.layout, "0.5")


def test_tokens_are_never_routed_to_a_dropped_expert():
    target = tiny_prunable("mixtral", experts=True)
    mask = torch.ones(target.layout.entries)
    place = target.layout.names.index("layers.1.experts")
    target.layout.split(mask)[place][[1, 4]] = 0
    routed = []
    experts = target.blocks[1].mlp.experts
    handle = experts.register_forward_pre_hook(lambda module, args: routed.append(args[1]))
    with masked(target) as masking:
        masking.set(mask)
        target.model(torch.randint(4, VOCABULARY, (2, 19)))
    handle.remove()
    assert set(routed[0].unique().tolist()) <= {0, 2, 3, 5}
    assert "forward" not in vars(experts)


def test_a_masked_mixture_can_be_cast():
    """As it is where masked and exported logits are compared in float32."""
    target = tiny_prunable("mixtral", experts=True)
    target.model.bfloat16()
    tokens = torch.randint(4, VOCABULARY, (2, 19))
    mask = masks_of("random", target.layout).kept.float()
    with masked(target) as masking:
        masking.set(mask)
        target.model.float()
        found = target.model(tokens).logits
        masking.set(mask)
        assert torch.equal(found, target.model(tokens).logits)
