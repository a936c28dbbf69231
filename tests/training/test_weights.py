"""Weights: a seed decides what is read, only blocks change, and training goes on where it was."""

import dataclasses

import pytest
import torch
from conftest import byte_tokenizer, one_process, run_in, tiny_prunable

from disp_llm.config.learning import TrainingConfig
from disp_llm.config.parts import MachineConfig
from disp_llm.config.recover import RecoverConfig
from disp_llm.data.tokens import tokenize
from disp_llm.data.windows import Corpus
from disp_llm.masks.prunable import PrunableModel
from disp_llm.runs.job import Interrupted, Job
from disp_llm.training.adapters import step_scale
from disp_llm.training.losses import Teacher
from disp_llm.training.weights import train_weights

STEPS = 4
TRAINING = TrainingConfig(
    length=16, batch=2, learning_rate=1e-2, compile="no",
    distill=0.0,
)  # fmt: skip


def trained(
    folder,
    text: str,
    seed: int = 0,
    *,
    stop_after: int = -1,
    optimizer: str = "adamw",
    steps: int = STEPS,
    factor: float = 1.0,
) -> dict[str, torch.Tensor]:
    """Weights of the tiny Llama, `factor` times as large, after some steps; the process's own
    randomness has no part."""
    student = enlarged(factor)
    machine = MachineConfig(device="cpu", seed=seed)
    training = dataclasses.replace(TRAINING, weight_optimizer=optimizer)
    config = RecoverConfig("tiny", tokens=32 * steps, training=training, machine=machine)
    done = []
    job = Job(
        config,
        run_in(folder),
        one_process(),
        progress=lambda stage, step, total, figures: done.append(step),
        stop_requested=lambda: len(done) == stop_after,
    )
    torch.seed()
    corpus = Corpus((tokenize([text], byte_tokenizer()),))
    assert train_weights(job, student, None, corpus, torch.float32) == steps
    return student.model.state_dict()


def enlarged(factor: float) -> PrunableModel:
    student = tiny_prunable("llama", tie_word_embeddings=False)
    with torch.no_grad():
        for linear in student.linears():
            linear.weight.mul_(factor)
    return student


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


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_that_were_stopped_and_gone_on_with_are_the_same(optimizer, text_file, tmp_path):
    text, settings = text_file.read_text(), {"optimizer": optimizer}
    with pytest.raises(Interrupted):
        trained(tmp_path / "cut", text, stop_after=1, **settings)
    whole, resumed = (trained(tmp_path / name, text, **settings) for name in ("whole", "cut"))
    assert same(whole, resumed) == set(whole)


def test_training_after_training_reads_on(text_file, tmp_path):
    """The windows of a second training follow those of the first, where both have one seed, and
    are none of those where its batch is another."""
    corpus, read = Corpus((tokenize([text_file.read_text()], byte_tokenizer()),)), []
    draw_own = corpus.draw_own

    def recorded(*arguments):
        read.append(draw_own(*arguments))
        return read[-1]

    object.__setattr__(corpus, "draw_own", recorded)

    def losses(name: str, steps: int, before: int, batch: int = TRAINING.batch) -> list[float]:
        seen: list[float] = []
        training = dataclasses.replace(TRAINING, learning_rate=1e-12, batch=batch)
        job = Job(
            RecoverConfig(
                "tiny",
                tokens=training.tokens_per_step * steps,
                training=training,
                machine=MachineConfig(device="cpu"),
            ),
            run_in(tmp_path / name),
            one_process(),
            progress=lambda stage, step, total, figures: seen.append(figures["loss"]),
        )
        train_weights(job, tiny_prunable("llama"), None, corpus, torch.float32, before)
        return seen

    whole = losses("whole", 4, before=0)
    assert len(set(whole)) == 4
    first = {tuple(row) for windows in read for row in windows.tokens.tolist()}
    assert losses("second", 2, before=64) == pytest.approx(whole[2:], rel=1e-5)
    del read[:]
    losses("other", 2, before=128, batch=2 * TRAINING.batch)
    assert not first & {tuple(row) for windows in read for row in windows.tokens.tolist()}


def test_muon_moves_no_direction_of_a_matrix_further_than_another(text_file, tmp_path):
    """As AdamW moves noise, a fifth of the step size an entry, if all directions move. Norms are
    AdamW's."""
    target = tiny_prunable("llama", tie_word_embeddings=False)
    before, step_size = target.model.state_dict(), TRAINING.learning_rate * step_scale(target)
    after = trained(tmp_path / "run", text_file.read_text(), optimizer="muon", steps=1)
    for name in before:
        change = after[name] - before[name]
        if "proj" in name:
            strengths = torch.linalg.svdvals(change) / step_size
            full = 0.2 * max(change.shape) ** 0.5
            assert 0.7 * full < strengths.max() < 1.3 * full, name
            assert (strengths > 0.6 * full).sum() >= 5, name
        elif "norm" in name:  # the first step is the step size, whatever the gradient
            torch.testing.assert_close(change.abs().max().item(), TRAINING.learning_rate)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_is_in_proportion_to_the_weights(optimizer, text_file, tmp_path):
    """That of norms is the step size, whatever their size."""
    changes = []
    for factor in (1.0, 3.0):
        before = enlarged(factor).model.state_dict()
        after = trained(
            tmp_path / f"{factor}", text_file.read_text(), steps=1, factor=factor,
            optimizer=optimizer,
        )  # fmt: skip
        changes.append({name: (after[name] - before[name]).abs().max() for name in before})
    for name, once in changes[0].items():
        wanted = 3 * once if "proj" in name else once
        torch.testing.assert_close(changes[1][name], wanted, rtol=0.3, atol=1e-6)


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss", "qwen2_moe"])
def test_experts_step_as_linear_layers_do(model_type, text_file, tmp_path):
    """In proportion to the size of the weights: AdamW's first step is its step size."""
    student = tiny_prunable(model_type)
    training = dataclasses.replace(TRAINING, weight_decay=0.0)
    machine = MachineConfig(device="cpu")
    config = RecoverConfig("tiny", tokens=32, training=training, machine=machine)
    job = Job(config, run_in(tmp_path), one_process(), progress=lambda *told: None)
    corpus = Corpus((tokenize([text_file.read_text()], byte_tokenizer()),))
    weights = [*(one.weight for one in student.linears()), *student.weights_of_experts()]
    before = [one.detach().clone() for one in weights]
    wanted = training.learning_rate * step_scale(student)
    assert abs(wanted / training.learning_rate - 1) > 0.1
    train_weights(job, student, None, corpus, torch.float32)
    for old, new in zip(before, weights, strict=True):
        change = (new.detach() - old).abs().max()
        assert float(change) == pytest.approx(wanted, rel=0.05)


def test_weights_learn_from_their_teacher(text_file, tmp_path):
    """Of one that is the student as it comes there is nothing to learn at first."""
    training = dataclasses.replace(TRAINING, distill=1.0)
    machine = MachineConfig(device="cpu")
    config = RecoverConfig("tiny", tokens=32, training=training, machine=machine)
    seen = []
    job = Job(
        config,
        run_in(tmp_path),
        one_process(),
        progress=lambda stage, step, total, figures: seen.append(figures["loss"]),
    )
    corpus = Corpus((tokenize([text_file.read_text()], byte_tokenizer()),))
    teacher = Teacher(tiny_prunable("llama"), 1.0)
    train_weights(job, tiny_prunable("llama"), teacher, corpus, torch.float32)
    assert abs(seen[0]) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_compute_in_the_data_type_of_the_model(dtype, text_file, tmp_path):
    """Weights learn in float32, and keep what is smaller than bfloat16 can tell apart."""
    student, seen = tiny_prunable("llama"), set()
    layer = student.blocks[1].mlp.down_proj
    layer.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    config = RecoverConfig(
        "tiny", tokens=32, training=TRAINING, machine=MachineConfig(device="cpu")
    )
    job = Job(config, run_in(tmp_path), one_process(), progress=lambda *told: None)
    corpus = Corpus((tokenize([text_file.read_text()], byte_tokenizer()),))
    train_weights(job, student, None, corpus, dtype)
    assert seen == {dtype}
    assert layer.weight.dtype == torch.float32
