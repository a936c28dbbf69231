"""Families on trained weights: random weights cannot show that an architecture prunes well.

A model of about ten million parameters of each kind learns the embedded speeches, cut by the
embedded tokenizer into the 4,096 tokens that they use most, and is kept in the user's cache.
Pruned to half, learned masks must beat one-shot Fisher scores, these magnitude, and magnitude
random masks.

`PYTHONPATH=tests python tests/proof/test_trained_families.py` prints the figures of every family.
"""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from accelerate import Accelerator
from environments import CACHE

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

VOCABULARY = 4096
STEPS, BATCH, LENGTH = 600, 8, 128
RATE, DECAY = 1e-3, 0.1
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
OWN = {
    "opt": {"ffn_dim": 1024, "word_embed_proj_dim": 256, "dropout": 0.0},
    "phi": {"intermediate_size": 1024},
    "gpt_neox": {"intermediate_size": 1024},
    "gemma3_text": {"query_pre_attn_scalar": 64},
}
NO_HEAD_DIM = ("opt", "phi", "gpt_neox")
FAMILIES = ("opt", "phi", "llama", "qwen3", "gemma3_text", "gpt_neox")
ORDER = ("dense", "learned", "fisher", "magnitude", "random")


def speeches() -> tuple[torch.Tensor, torch.Tensor]:
    """(learning, held-out) tokens, renumbered by frequency; rarer ones become number 0."""
    path = model_file()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    stream, held_out, _ = load_tokens(TextConfig(), tokenizer)
    frequent = torch.bincount(stream, minlength=len(tokenizer)).argsort(descending=True)
    number = torch.zeros(len(tokenizer), dtype=torch.long)
    number[frequent[: VOCABULARY - 1]] = torch.arange(1, VOCABULARY)
    return number[stream], number[held_out]


@pytest.fixture(scope="module")
def text():
    return speeches()


def trained(model_type: str, stream: torch.Tensor):
    """From the cache, or trained now: AdamW with warm-up and cosine, bfloat16 products."""
    folder = CACHE / "models" / f"{model_type}-{STEPS}-{RATE}-{DECAY}"
    if folder.exists():
        return transformers.AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    values = SHAPE | OWN.get(model_type, {})
    if model_type in NO_HEAD_DIM:
        values.pop("head_dim")
    config = transformers.AutoConfig.for_model(model_type, vocab_size=VOCABULARY, **values)
    model = transformers.AutoModelForCausalLM.from_config(config).train()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95))
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


def perplexities(model_type: str, stream, held_out, folder: Path) -> dict[str, float]:
    """Of the dense model and of the masks of every method at keep 0.5, on held-out speeches."""
    model = trained(model_type, stream).eval().requires_grad_(False).to(torch.bfloat16)
    family = family_of(model.config)
    budget = Budget(layout_of(model, family))
    task = Task(model, family, stream, budget, (0.5,), align=1, seed=0)
    context = Context(
        ScoreConfig(calibration_length=256),
        LearnConfig(steps=100, length=128, batch=4),
        folder,
        Accelerator(cpu=True),
        lambda done, total: None,
        lambda metrics: None,
    )
    found = {}
    for method in ORDER:
        kept = torch.ones(budget.layout.entries)
        if method != "dense":
            own = replace(context, folder=folder / method)  # scores of learned and Fisher differ
            kept = project(METHODS[method](task, own), budget, 0.5).kept.float()
        with masked(model, family, budget.layout) as masking:
            masking.set(kept)
            found[method] = perplexity(model, family, held_out, EvalConfig(256, 0, 40)).perplexity
    return found


@pytest.mark.parametrize("model_type", FAMILIES)
def test_learned_beats_fisher_beats_magnitude_beats_random(model_type, text, tmp_path):
    found = perplexities(model_type, *text, tmp_path)
    assert list(found.values()) == sorted(found.values()), found


if __name__ == "__main__":
    texts = speeches()
    for name in sys.argv[1:] or FAMILIES:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as temporary:
            figures = perplexities(name, *texts, Path(temporary))
        shown = "  ".join(f"{method} {value:.1f}" for method, value in figures.items())
        print(f"{name}: {shown}  ({time.perf_counter() - began:.0f} s)", flush=True)
