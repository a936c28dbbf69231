"""Weights: a seed decides what is read, only blocks change, and training goes on where it was."""

import pytest
import torch
from conftest import byte_tokenizer, one_process, tiny_prunable

from disp_llm.config.learning import TrainingConfig
from disp_llm.config.parts import MachineConfig
from disp_llm.config.recover import RecoverConfig
from disp_llm.data.tokens import Corpus, tokenize
from disp_llm.runs.folder import Run
from disp_llm.runs.job import Interrupted, Job
from disp_llm.training.weights import train_weights

STEPS = 4
TRAINING = TrainingConfig(
    length=16, batch=2, learning_rate=1e-2, warmup=0.0, checkpoint_every=9, compile="no",
    distill=0.0,
)  # fmt: skip


def trained(folder, text: str, seed: int = 0, stop_after: int = -1) -> dict[str, torch.Tensor]:
    """Weights of the tiny Llama after some steps; the process's own randomness has no part."""
    student = tiny_prunable("llama", tie_word_embeddings=False)
    machine = MachineConfig(device="cpu", seed=seed)
    config = RecoverConfig("tiny", tokens=32 * STEPS, training=TRAINING, machine=machine)
    done = []
    job = Job(
        config,
        Run(folder),
        one_process(),
        progress=lambda stage, step, total, figures: done.append(step),
        stop_requested=lambda: len(done) == stop_after,
    )
    torch.seed()
    corpus = Corpus((tokenize([text], byte_tokenizer()),))
    assert train_weights(job, student, None, corpus, torch.float32) == STEPS
    return student.model.state_dict()


def same(one: dict, other: dict) -> set[str]:
    return {name for name in one if torch.equal(one[name], other[name])}


def test_a_seed_decides_what_is_learned_and_only_in_the_blocks(text_file, tmp_path):
    text = text_file.read_text()
    first, again, other = (
        trained(tmp_path / name, text, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert same(first, again) == set(first)
    frozen = {"model.embed_tokens.weight", "lm_head.weight"}
    assert same(first, other) == frozen
    before = tiny_prunable("llama", tie_word_embeddings=False).model.state_dict()
    assert same(first, before) == frozen


def test_weights_that_were_stopped_and_gone_on_with_are_the_same(text_file, tmp_path):
    text = text_file.read_text()
    with pytest.raises(Interrupted):
        trained(tmp_path / "cut", text, stop_after=1)
    whole, resumed = (trained(tmp_path / name, text) for name in ("whole", "cut"))
    assert same(whole, resumed) == set(whole)
