"""Text that the model writes: what is drawn, how sequences begin, what a run keeps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from configurations import VOCABULARY
from conftest import BEGUN, byte_tokenizer, one_process, run_in, tiny_model
from safetensors.torch import load_file, save_file

from disp_llm.config.checks import check_settings
from disp_llm.config.errors import InputError
from disp_llm.config.parts import PerplexityConfig, TextConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.data import synthetic
from disp_llm.data.randomness import random_stream
from disp_llm.data.sources import GivenText, Needs, held_out
from disp_llm.data.synthetic import sample, synthetic_text
from disp_llm.models.architectures import FAMILIES
from disp_llm.models.loading import Loaded
from disp_llm.runs.folder import Run
from disp_llm.runs.job import Interrupted, Job, Process

BOS, EOS = 1, 2
LENGTH = 16
NEEDS = Needs(64, 30)


def noise(number: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "gemma2"])
def test_tokens_are_drawn_as_often_as_the_model_predicts_them(model_type, tokenizer):
    """A frequency test: 4,000 draws after BOS, whatever penalties and beams the model came with."""
    model = tiny_model(model_type)
    model.generation_config.update(repetition_penalty=5.0, num_beams=2, suppress_tokens=[EOS])
    found = sample(model, tokenizer, 8000, 2, noise())
    assert (found[:, 0] == BOS).all()
    assert found.max() < len(tokenizer) < VOCABULARY  # which knows fewer tokens than the model
    assert model.generation_config.num_beams == 2
    logits = model(torch.tensor([[BOS]])).logits[0, -1, : len(tokenizer)]
    expected = 4000 * logits.float().softmax(-1)
    counted = torch.bincount(found[::2, 1], minlength=len(tokenizer))
    often = expected > 10
    excess = ((counted - expected) ** 2 / expected)[often]
    assert often.sum() > 10
    assert excess.mean() < 2  # 1 on average where the draws are true


@pytest.mark.parametrize("model_type", ["bamba", "deepseek_v3", "gemma4_text", "qwen3_5_text"])
def test_models_of_other_kinds_write_too(model_type, tokenizer):
    assert sample(tiny_model(model_type), tokenizer, 2, 6, noise()).shape == (2, 6)


def test_half_of_the_sequences_go_on_with_a_random_ordinary_token(tokenizer):
    model = tiny_model("llama")
    model.get_output_embeddings().weight.zero_()
    model.get_output_embeddings().weight[5] = model.model.norm.weight  # nearly always token 5
    found = sample(model, tokenizer, 200, 2, noise())[:, 1]
    random = set(found[1::2].tolist())
    assert len(random) > 40
    assert not random & set(tokenizer.all_special_ids)


def test_a_seed_gives_the_same_text_and_moves_no_other_random_numbers(tokenizer):
    model = tiny_model("llama")
    torch.manual_seed(3)
    before = torch.rand(3)
    torch.manual_seed(3)
    five = sample(model, tokenizer, 5, 16, noise())
    assert torch.equal(torch.rand(3), before)
    assert torch.equal(sample(model, tokenizer, 5, 16, noise()), five)
    assert not torch.equal(sample(model, tokenizer, 5, 16, noise(8)), five)
    assert len({tuple(row) for row in five.tolist()}) == 5


def test_without_bos_sequences_begin_with_eos():
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    assert (sample(tiny_model("llama"), tokenizer, 4, 8, noise())[:, 0] == EOS).all()


def test_a_bos_that_opens_a_turn_begins_no_document():
    """Chat models have one: after it they write the name of a speaker."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    separator = tokenizer.get_vocab()["<|endoftext|>"]
    model = tiny_model("llama")
    model.resize_token_embeddings(len(tokenizer))
    assert (sample(model, tokenizer, 4, 8, noise())[:, 0] == separator).all()


def test_a_document_that_ends_ends_no_sequence(tokenizer):
    model = tiny_model("llama")
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(VOCABULARY), requires_grad=False)
    head.bias[EOS] = 20.0
    found = sample(model, tokenizer, 4, 16, noise())
    assert found.shape == (4, 16)
    assert (found[:, 2:] == EOS).float().mean() > 0.5


def test_a_model_that_predicts_no_numbers_is_refused(tokenizer):
    model = tiny_model("llama")
    model.get_output_embeddings().weight.fill_(torch.inf)
    with pytest.raises(InputError, match="dtype: the model predicts what is no finite number"):
        sample(model, tokenizer, 8, 8, noise())


def test_how_many_tokens_is_asked_only_where_some_are_written():
    with pytest.raises(InputError) as raised:
        check_settings(TextConfig(self_tokens=-1))
    assert raised.value.field == "self_tokens"
    for names in (("self",), ("a.txt", "self")):
        text = TextConfig(text=tuple(map(Path, names)), self_tokens=64)
        check_settings(PruneConfig("m", text=text))
    for name in ("text", "examples"):
        text = TextConfig(**{name: (Path("a.txt"),)}, self_tokens=64)
        with pytest.raises(InputError, match=r"self_tokens: .* writes none; .*add `text` self"):
            check_settings(PruneConfig("m", text=text))


# What lies in the folder of a run.


def written_in(folder: Path, needs: Needs = NEEDS, share: float = 1.0, **changes):
    """The text of a run that has begun: 6 sequences, two at once by the fixture below."""
    config = PruneConfig("m", text=TextConfig(self_tokens=changes.pop("self_tokens", 0)))
    config = replace(config, training=replace(config.training, length=LENGTH))
    run = changes.pop("run", run_in(folder))
    if not run.result():
        run.update(**BEGUN)
    job = Job(config, run, changes.pop("process", one_process()), **changes)
    model = tiny_model("llama")
    loaded = Loaded(model, byte_tokenizer(), FAMILIES["llama"], {}, torch.float32)
    return synthetic_text(job, loaded, needs, random_stream("words", 0), share)


def tokens(text: GivenText) -> list[int]:
    assert text.tokens is not None
    return text.tokens.tolist()


@pytest.fixture(autouse=True)
def two_at_once(monkeypatch) -> None:
    monkeypatch.setattr(synthetic, "CPU_BATCH", 2)


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """How many sequences are written at once from here on."""
    counts: list[int] = []
    written: Callable = synthetic.sample

    def counting(model, tokenizer, count, *arguments):
        counts.append(count)
        if count > 3:
            raise torch.OutOfMemoryError
        return written(model, tokenizer, count, *arguments)

    monkeypatch.setattr(synthetic, "sample", counting)
    return counts


def test_one_file_that_is_recorded_and_read_again(counted, tmp_path):
    told: list[tuple[int, int]] = []

    def progress(stage: str, done: int, total: int, figures: dict) -> None:
        told.append((done, total))

    text = written_in(tmp_path, progress=progress)
    parts = load_file(tmp_path / "synthetic.safetensors")
    assert tokens(text) == torch.cat([parts["learning"], parts["held_out"]]).tolist()
    assert text.held_out == len(parts["held_out"]) == 30
    assert text.name == "synthetic text, 96 tokens"
    assert list(Run(tmp_path).result()["files"]) == ["synthetic.safetensors"]
    assert told == [(done, 96) for done in range(2, 98, 2)]
    assert counted == [2, 2, 2]
    again = written_in(tmp_path, Needs(1000, 200))  # such as of another number of processes
    assert (tokens(again), again.held_out) == (tokens(text), 30)
    assert counted == [2, 2, 2]


def test_an_interrupted_attempt_begins_again(tmp_path):
    whole = written_in(tmp_path / "whole")
    asked = iter(range(10_000))
    with pytest.raises(Interrupted):
        written_in(tmp_path / "run", stop_requested=lambda: next(asked) == 2 * LENGTH)
    assert not (tmp_path / "run" / "synthetic.safetensors").exists()
    assert tokens(written_in(tmp_path / "run")) == tokens(whole)


def test_fewer_at_once_where_memory_is_short(counted, monkeypatch, tmp_path):
    monkeypatch.setattr(synthetic, "CPU_BATCH", 5)
    assert len(tokens(written_in(tmp_path))) == 96
    assert counted == [5, 2, 2, 2]


def test_a_file_that_has_changed_is_refused(tmp_path):
    written_in(tmp_path)
    save_file({"other": torch.zeros(2)}, tmp_path / "synthetic.safetensors")
    with pytest.raises(InputError, match="is not the file that was written"):
        written_in(tmp_path)
    with pytest.raises(InputError, match="holds other tensors"):
        written_in(tmp_path, run=Run(tmp_path, anyway=True))


@pytest.mark.parametrize(
    ("asked", "needs", "share", "count"),
    [
        (0, Needs(64, 30), 1.0, 96),
        (0, Needs(64, 30), 0.5, 48),
        (0, Needs(0, 0), 1.0, LENGTH),
        (33, Needs(64, 30, seconds=1e9), 1.0, 48),
    ],
)
def test_as_many_as_are_read(asked, needs, share, count, tmp_path):
    text = written_in(tmp_path, needs, share, self_tokens=asked)
    assert len(tokens(text)) == count
    assert text.held_out is not None
    assert text.held_out <= count // 2


def test_while_there_is_time_and_at_least_as_many_as_are_needed(monkeypatch, tmp_path):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(synthetic.time, "perf_counter", lambda: float(next(clock)))
    assert len(tokens(written_in(tmp_path, Needs(16, 16, seconds=35.0)))) > 2 * LENGTH
    late = written_in(tmp_path / "late", Needs(80, 16, seconds=0.1))
    assert len(tokens(late)) == 6 * LENGTH


def test_other_processes_read_and_record_nothing(counted, tmp_path):
    whole = written_in(tmp_path)
    before = (tmp_path / "result.json").read_bytes()

    class Second(Process):
        is_main = False

    one = one_process()
    other = written_in(tmp_path, process=Second(one.accelerator, one.device))
    assert tokens(other) == tokens(whole)
    assert len(counted) == 3
    assert (tmp_path / "result.json").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "evaluation", "expected"),
    [
        (TextConfig(), PerplexityConfig(context=32, windows=4), 128),
        (TextConfig(), PerplexityConfig(windows=0), 100),
        (TextConfig(eval_text=(Path("x"),)), PerplexityConfig(), 0),
        (TextConfig(eval_dataset="x:y"), PerplexityConfig(), 0),
    ],
)
def test_what_is_only_measured_on_is_written_too(text, evaluation, expected):
    assert held_out(text, evaluation, learning=900) == expected


def test_tokens_that_the_model_has_not_are_not_written():
    tokenizer, model = byte_tokenizer(), tiny_model("llama")
    more = [f"<{n}>" for n in range(model.config.vocab_size - len(tokenizer) + 1)]
    tokenizer.add_special_tokens({"additional_special_tokens": more})
    assert len(tokenizer) == model.config.vocab_size + 1
    written = sample(model, tokenizer, 4, 8, torch.Generator().manual_seed(0))
    assert int(written.max()) < model.config.vocab_size
