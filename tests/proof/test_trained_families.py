"""Families on trained weights: random weights cannot show that an architecture prunes well.

A small model of each kind learns the embedded text with the embedded tokenizer for a few minutes
and is kept in the user's cache. Pruned to half, learned masks must beat one-shot Fisher scores,
these magnitude, and magnitude random masks.
"""

import os
from pathlib import Path

import pytest
import torch
import transformers
from accelerate import Accelerator

from disp_llm.budget import Budget, project
from disp_llm.config import EvalConfig, LearnConfig, ScoreConfig, TextConfig
from disp_llm.embedded import model_file
from disp_llm.evaluate import perplexity
from disp_llm.families import family_of
from disp_llm.learn import Task, generator_of
from disp_llm.masks import layout_of, masked
from disp_llm.methods import METHODS
from disp_llm.methods.context import Context
from disp_llm.text import load_tokens, random_windows

pytestmark = [pytest.mark.proof, pytest.mark.timeout(1800)]

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "disp-llm" / "proof-models"
STEPS, BATCH, LENGTH = 320, 4, 256
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
OWN = {
    "opt": {"ffn_dim": 512, "word_embed_proj_dim": 128, "dropout": 0.0},
    "qwen3": {"head_dim": 32},
    "gemma3_text": {"head_dim": 32, "query_pre_attn_scalar": 32},
}


@pytest.fixture(scope="module")
def text():
    path = model_file()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    stream, held_out, _ = load_tokens(TextConfig(), tokenizer)
    return tokenizer, stream, held_out


def trained(model_type: str, tokenizer, stream: torch.Tensor):
    """From the cache, or trained now: AdamW, 3e-3 with warm-up and cosine, bfloat16 products."""
    folder = CACHE / f"{model_type}-{STEPS}"
    if folder.exists():
        return transformers.AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        model_type, vocab_size=len(tokenizer), **SHAPE | OWN.get(model_type, {})
    )
    model = transformers.AutoModelForCausalLM.from_config(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 30, STEPS)
    for step in range(STEPS):
        windows = random_windows(stream, BATCH, LENGTH, generator_of(11, step))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(windows, labels=windows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("model_type", ["opt", "phi", "llama", "qwen3", "gemma3_text", "gpt_neox"])
def test_learned_beats_fisher_beats_magnitude_beats_random(model_type, text, tmp_path):
    tokenizer, stream, held_out = text
    model = trained(model_type, tokenizer, stream).eval().requires_grad_(False)
    family = family_of(model.config)
    budget = Budget(layout_of(model, family))
    task = Task(model, family, stream, budget, (0.5,), align=1, seed=0)
    context = Context(
        ScoreConfig(calibration_length=256),
        LearnConfig(steps=150, length=256),
        tmp_path,
        Accelerator(cpu=True),
        lambda done, total: None,
        lambda metrics: None,
    )
    found = {}
    with masked(model, family, budget.layout) as masking:
        masking.set(torch.ones(budget.layout.entries))
        found["dense"] = measure(model, family, held_out)
    for method in ("learned", "fisher", "magnitude", "random"):
        (tmp_path / "scores.safetensors").unlink(missing_ok=True)
        kept = project(METHODS[method](task, context), budget, 0.5).kept
        with masked(model, family, budget.layout) as masking:
            masking.set(kept.float())
            found[method] = measure(model, family, held_out)
    print(model_type, {name: round(value, 1) for name, value in found.items()})
    order = ["dense", "learned", "fisher", "magnitude", "random"]
    values = [found[name] for name in order]
    assert values == sorted(values), found


def measure(model, family, stream: torch.Tensor) -> float:
    return perplexity(model, family, stream, EvalConfig(256, 0, 40)).perplexity
