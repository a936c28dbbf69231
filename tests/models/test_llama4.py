"""Llama 4: what is published is a wrapper, whose language model is taken out of it."""

import json

import torch
import transformers
from configurations import SHAPE, tiny_config
from conftest import SMALL, byte_tokenizer, must_refuse, must_run, random_weights
from tiny_wrappers import SIGHT

from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.architectures import family_of

VISION = SIGHT | {
    "intermediate_size": 96,
    "projector_input_dim": 20,
    "projector_output_dim": 20,
    "vision_output_dim": 20,
}


def wrapper() -> transformers.Llama4ForConditionalGeneration:
    """A tiny one, with mixtures in two of its three blocks."""
    torch.manual_seed(0)
    text = tiny_config("llama4_text").to_dict() | {"num_experts_per_tok": 1}
    config = transformers.Llama4Config(text_config=SHAPE | text, vision_config=VISION)
    return random_weights(transformers.Llama4ForConditionalGeneration(config))


def test_the_language_model_of_a_wrapper_is_pruned(tmp_path, text_file):
    """As docs/commands.md says; the wrapper itself is refused in one line."""
    whole = wrapper()
    whole.save_pretrained(tmp_path / "wrapper")
    done = must_refuse("doctor", tmp_path / "wrapper")
    assert "architecture 'llama4' is not supported" in done.stderr
    text = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "wrapper")
    text.save_pretrained(tmp_path / "text")
    byte_tokenizer().save_pretrained(tmp_path / "text")
    done = must_run(
        "prune", tmp_path / "text", "--keep", 1.0, 0.6, "--text", text_file, "--sites", "attn_in",
        "attn_out", "mlp_in", "mlp_mid", "mlp_out", "experts", "heads",
        "--output-dir", tmp_path / "run", "--json", *SMALL,
    )  # fmt: skip
    found = json.loads(done.stdout)["models"]
    assert all(size["keep"] <= asked for size, asked in zip(found, (1.0, 0.6), strict=True))
    assert max(size["logit_errors"]["max_logit_error"] for size in found) < 1e-5
    tokens = torch.randint(4, 256, (1, 19), generator=torch.Generator().manual_seed(0))
    small = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "keep-0.6")
    assert type(small).__name__ == "DispLlama4ForCausalLM"
    base = transformers.AutoModel.from_pretrained(tmp_path / "run" / "keep-0.6")
    assert type(base).__name__ == "DispLlama4TextModel"
    hidden = base(tokens).last_hidden_state
    torch.testing.assert_close(small.lm_head(hidden), small(tokens).logits, rtol=0, atol=1e-5)


def test_hidden_states_come_from_inside_of_what_transformers_calls_the_base_model():
    model = wrapper().language_model
    target = PrunableModel(model, family_of(model.config))
    assert model.base_model is model
    assert target.base is model.model
