"""What random weights cannot show: that a family prunes well.

A model of about 8 M parameters of each kind is trained here for a few minutes on the embedded
text, cut by the embedded tokenizer into the 4,096 tokens that it uses most, and is kept in the
user's cache; a mixture of experts, a hybrid and one with latent attention are of 1.4 to 2.3 M.
Pruned to half, the mixture to a quarter, learned masks must beat one-shot Fisher scores, these
magnitude, and magnitude random masks. How far the last two depend on the training,
docs/experiment-log.md tells.

`PYTHONPATH=tests python tests/proof/test_trained_families.py` prints the figures of every family,
`… experts 0.45` those of the mixture at that size when experts or channels of them are pruned.
"""

import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from accelerate import Accelerator
from environments import CACHE

from disp_llm.config.learning import LearnConfig, TrainingConfig
from disp_llm.config.names import EXPERTS, SITES, SPEECHES, Site
from disp_llm.config.parts import PerplexityConfig, ScoreConfig, TextConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.data.randomness import generator_of
from disp_llm.data.tokens import load_tokens
from disp_llm.data.windows import Corpus, random_windows
from disp_llm.evaluation.perplexity import perplexity
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.masking import masked
from disp_llm.masks.prunable import PrunableModel
from disp_llm.methods import method_named
from disp_llm.models.architectures import family_of
from disp_llm.models.embedded import model_file
from disp_llm.runs.folder import Run
from disp_llm.runs.job import Job, Process
from disp_llm.training.problem import PruningProblem

pytestmark = [pytest.mark.proof, pytest.mark.timeout(3000)]

VOCABULARY = 4096
BATCH, LENGTH = 8, 128


@dataclass(frozen=True)
class Training:
    """How a model was made: AdamW with warm-up and cosine, products in bfloat16."""

    steps: int = 400
    rate: float = 3e-3
    decay: float = 0.1
    spread: float = 0.02
    """Standard deviation of the first weights."""
    keep: float = 0.5
    """To what share of its block parameters it is pruned."""


TRAININGS = {
    "opt": Training(steps=600, rate=2e-3, decay=0.3, spread=0.01),
    "phi": Training(steps=600, decay=0.3),
    "llama": Training(),
    "qwen3": Training(),
    "gemma3_text": Training(steps=600, rate=1e-3),
    "gemma4_text": Training(steps=800),
    "gpt_neox": Training(steps=600, decay=0.3),
    "mixtral": Training(keep=0.25),
    "qwen3_5_text": Training(),
    "deepseek_v3": Training(),
}
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
SMALLER = {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 384, "head_dim": 32}
"""Of the kinds whose blocks take longer."""
OWN = {
    "opt": {"ffn_dim": 1024, "word_embed_proj_dim": 256, "dropout": 0.0},
    "phi": {"intermediate_size": 1024},
    "gpt_neox": {"intermediate_size": 1024},
    "gemma3_text": {"query_pre_attn_scalar": 64},
    # Inputs of each block, and two blocks with keys and values of others and MLPs twice as wide.
    "gemma4_text": SMALLER
    | {
        "num_hidden_layers": 6,
        "layer_types": [*["sliding_attention"] * 2, "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "global_head_dim": 64,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": VOCABULARY,
    },
    # Two of eight experts for a token.
    "mixtral": SMALLER
    | {"intermediate_size": 128, "num_local_experts": 8, "num_experts_per_tok": 2},
    # Three gated DeltaNets, then an attention.
    "qwen3_5_text": SMALLER
    | {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
    },
    # Latent attention; all of its MLPs are dense.
    "deepseek_v3": SMALLER
    | {
        "first_k_dense_replace": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 96,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
    },
}
NO_HEAD_DIM = ("opt", "phi", "gpt_neox", "deepseek_v3")
EXPERTS_OR_CHANNELS: dict[str, tuple[Site, ...]] = {
    "experts": (EXPERTS,),
    "channels": ("mlp_mid",),
    "channels and experts": ("mlp_mid", EXPERTS),
    "five sites": SITES,
    "five sites and experts": (*SITES, EXPERTS),
}
"""What of a mixture can be pruned."""
ORDER = ("dense", "learned", "fisher", "magnitude", "random")
ANOTHER_PROCESSOR = 1.03
"""What other rounding, that of the training included, may do to Fisher scores against magnitude,
which these trainings put 4 to 15 % apart (docs/experiment-log.md)."""


def speeches() -> tuple[torch.Tensor, torch.Tensor]:
    """(learning, held-out) tokens, renumbered by frequency; rarer ones become number 0."""
    path = model_file()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    texts = load_tokens(TextConfig(text=(Path(SPEECHES),)), tokenizer)
    (stream,), held_out = texts.corpus.streams, texts.evaluation
    frequent = torch.bincount(stream, minlength=len(tokenizer)).argsort(descending=True)
    number = torch.zeros(len(tokenizer), dtype=torch.long)
    number[frequent[: VOCABULARY - 1]] = torch.arange(1, VOCABULARY)
    return number[stream], number[held_out]


def trained(model_type: str, stream: torch.Tensor):
    """From the cache, or trained now."""
    way = TRAININGS[model_type]
    folder = CACHE / "models" / f"{model_type}-{way.steps}-{way.rate}-{way.decay}-{way.spread}"
    if folder.exists():
        return transformers.AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    values = SHAPE | {"initializer_range": way.spread} | OWN.get(model_type, {})
    if model_type in NO_HEAD_DIM:
        values.pop("head_dim")
    config = transformers.AutoConfig.for_model(model_type, vocab_size=VOCABULARY, **values)
    model = transformers.AutoModelForCausalLM.from_config(config).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=way.rate, weight_decay=way.decay, betas=(0.9, 0.95)
    )
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 30, way.steps)
    for step in range(way.steps):
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


@dataclass(frozen=True)
class Trained:
    """A model that was made here, and its text."""

    model: transformers.PreTrainedModel
    stream: torch.Tensor
    held_out: torch.Tensor

    @classmethod
    def of(cls, model_type: str) -> "Trained":
        torch.set_num_threads(1)  # as many models at once as there are cores
        stream, held_out = speeches()
        model = trained(model_type, stream).eval().requires_grad_(False).to(torch.bfloat16)
        return cls(model, stream, held_out)

    def perplexity(self, method: str, sites: tuple[Site, ...], keep: float, folder: Path) -> float:
        """With the masks of a method, on held-out speeches.

        Args:
            sites: those that are pruned.
            folder: where the method may leave its scores.
        """
        family = family_of(self.model.config)
        dense = PrunableModel(self.model, family, tuple(dict.fromkeys((*SITES, *sites))))
        budget = Budget(dense.layout, sites=sites)
        kept = torch.ones(budget.layout.entries)
        if method != "dense":
            config = PruneConfig(
                self.model.config.model_type,
                scores=ScoreConfig(calibration_length=256),
                learn=LearnConfig(steps=100, adapter_rank=0),  # as the recipe `domain` has it
                training=TrainingConfig(length=128, batch=4, distill=0.0),
            )
            job = Job(config, Run(folder), Process(Accelerator(cpu=True), torch.device("cpu")))
            text = Corpus((self.stream,))
            problem = PruningProblem(dense, text, budget, (keep,), align=1, job=job)
            selection = method_named(method).choose(problem)
            kept = project(selection.importance, budget, keep).kept.float()
            if selection.compensation.scales is not None:
                kept = kept * selection.compensation.scales
        with masked(dense) as masking:
            masking.set(kept)
            return perplexity(
                dense, self.held_out, PerplexityConfig(context=256, windows=40)
            ).perplexity


def perplexities(model_type: str, folder: Path) -> dict[str, float]:
    """Of the dense model and of the masks of every method."""
    model, keep = Trained.of(model_type), TRAININGS[model_type].keep
    return {
        method: model.perplexity(method, SITES, keep, folder / method)  # scores of its own
        for method in ORDER
    }


def experts_against_channels(keep: float, folder: Path) -> None:
    """Prints the mixture's perplexities with other sites, all at one budget."""
    model = Trained.of("mixtral")
    print("dense", round(model.perplexity("dense", SITES, keep, folder), 1), flush=True)
    for name, sites in EXPERTS_OR_CHANNELS.items():
        reap = ("reap",) if sites == (EXPERTS,) else ()
        for method in (*ORDER[1:], *reap):
            found = model.perplexity(method, sites, keep, folder / f"{name} {method}")
            print(name, method, round(found, 1), flush=True)


def of_all(families: list[str], folder: Path) -> dict[str, dict[str, float]]:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=spawn) as pool:
        figures = pool.map(perplexities, families, [folder / name for name in families])
        return dict(zip(families, figures, strict=True))


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict[str, float]]:
    return of_all(list(TRAININGS), tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("model_type", TRAININGS)
def test_learned_beats_fisher_beats_magnitude_beats_random(model_type, found):
    figures = found[model_type]  # masks may beat the dense model
    fisher, magnitude, random = figures["fisher"], figures["magnitude"], figures["random"]
    assert figures["learned"] < min(fisher, magnitude), figures
    assert fisher < magnitude * ANOTHER_PROCESSOR, figures
    assert fisher < random, figures
    assert magnitude < random or model_type == "qwen3_5_text", figures  # why not, the log tells


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        if sys.argv[1:2] == ["experts"]:
            sys.exit(experts_against_channels(float(sys.argv[2]), Path(temporary)))
        for name, figures in of_all(sys.argv[1:] or list(TRAININGS), Path(temporary)).items():
            print(name, "  ".join(f"{method} {value:.1f}" for method, value in figures.items()))
