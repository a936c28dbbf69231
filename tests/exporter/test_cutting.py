"""What the cut adds to weights, and layers joined for inference."""

import pytest
import torch
import transformers
from conftest import masks_of, tiny_prunable

from disp_llm.compact.modeling_disp_llm import linear_at
from disp_llm.exporter.cutting import compact_config, compact_model, fold_into_weights
from disp_llm.masks.selection import Compensation, Masks, Selection


def test_a_bias_is_what_pruned_inputs_would_have_added_on_average():
    target = tiny_prunable("llama")
    layout, kept = target.layout, masks_of("random", target.layout).kept
    means = torch.randn(sum(shape.q + shape.intermediate for shape in layout.blocks))
    selection = Selection(kept.float(), Compensation(mean_inputs=means))
    masks, dense = Masks(layout, kept, selection), target.blocks[0]
    weight = linear_at(dense, "mlp.down_proj").weight.detach().clone()
    with fold_into_weights(target, masks):
        compact = compact_model(target, masks)
    of_site = layout.named(kept)
    inside, written = (of_site[f"layers.0.{site}"] for site in ("mlp_mid", "mlp_out"))
    q = layout.blocks[0].q
    wanted = (weight @ means[q : q + len(inside)].masked_fill(inside, 0.0))[written]
    bias = linear_at(compact.model.layers[0], "mlp.down_proj").bias
    torch.testing.assert_close(bias.detach(), wanted)


@pytest.mark.parametrize(
    ("model_type", "changes", "scale"),
    [
        ("llama", {}, 1.0),
        ("granite", {"logits_scaling": 8.0}, 1 / 8),
        ("hyperclovax", {"logits_scaling": 3.0}, 3.0),
        ("cohere", {"logit_scale": 0.5}, 0.5),
    ],
)
def test_engines_are_told_what_the_head_does_to_logits(model_type, changes, scale, tmp_path):
    """By the one name that vLLM reads, which `save --plain` does not hand on."""
    target = tiny_prunable(model_type, **changes)
    config = compact_config(target, masks_of("random", target.layout))
    config.save_pretrained(tmp_path)
    assert type(config).from_pretrained(tmp_path).logit_scale == scale
    assert ("logit_scale" in config.to_dict()) == (model_type == "cohere")


def test_engines_are_not_told_to_leave_weights_out():
    """They make the model without its head."""
    target = tiny_prunable("glm4_moe")
    assert target.model.base_model._keys_to_ignore_on_load_unexpected
    config = compact_config(target, masks_of("random", target.layout))
    with torch.device("meta"):
        made = transformers.AutoModel.from_config(config)
    assert not made._keys_to_ignore_on_load_unexpected
