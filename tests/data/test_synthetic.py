"""Text that the model writes: what is drawn, how documents begin and end, what a run keeps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from configurations import ARCHITECTURES, VOCABULARY, cases
from conftest import BEGUN, byte_tokenizer, one_process, run_in, tiny_model
from safetensors.torch import load_file, save_file

from disp_llm.config.effect import check_settings
from disp_llm.config.errors import InputError
from disp_llm.config.parts import PerplexityConfig, TextConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.data import synthetic
from disp_llm.data.given import GivenText
from disp_llm.data.randomness import random_stream
from disp_llm.data.synthetic import (
    CHANCES,
    SEPARATOR,
    Documents,
    Needs,
    Writer,
    fitting_batch,
    held_out,
    write_sequences,
)
from disp_llm.models.architectures import FAMILIES
from disp_llm.models.loading import Loaded
from disp_llm.runs.folder import Run
from disp_llm.runs.job import Interrupted, Job, Process

BOS, EOS = 1, 2
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}:{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>answer:{% endif %}"
)
LENGTH = 16


def noise(number: int, seed: int = 7) -> torch.Generator:
    return random_stream("words", seed, number)


def write(model, tokenizer, count: int, length: int, seed: int = 7) -> torch.Tensor:
    chances = [noise(number, seed) for number in range(count)]
    return write_sequences(model, Documents.of(model, tokenizer), chances, length)


def slowly(model, tokenizer, number: int, length: int) -> list[int]:
    """One sequence, each token from a forward pass over all those before it."""
    chances = torch.rand(CHANCES, length, generator=noise(number))
    ordinary = [t for t in range(len(tokenizer)) if t not in tokenizer.all_special_ids]

    def opening(place: int) -> int:
        kind, which = chances[1:, place].tolist()
        return ordinary[int(which * len(ordinary))] if kind < 0.5 else BOS

    written = [opening(0)]
    while len(written) < length:
        if written[-1] == EOS:
            written.append(opening(len(written)))
            continue
        logits = model(torch.tensor([written]), use_cache=False).logits[0, -1, : len(tokenizer)]
        summed = logits.float().softmax(-1).cumsum(-1)
        place = chances[0, len(written)] * summed[-1]
        written.append(int(torch.searchsorted(summed, place, right=True)))
    return written


def easily_ending(model):
    """The same model, which ends a document after some ten tokens."""
    head, tokens = model.get_output_embeddings(), torch.tensor([[BOS]])
    head.bias = torch.nn.Parameter(torch.zeros(VOCABULARY), requires_grad=False)
    before = model(tokens).logits[0, 0, EOS]
    head.bias[EOS] = 1.0
    head.bias[EOS] = 7.0 / (model(tokens).logits[0, 0, EOS] - before)  # whatever scales logits
    return model


@pytest.mark.parametrize("model_type", cases(ARCHITECTURES))
def test_side_by_side_with_a_cache_is_the_same_as_one_by_one_without(model_type, tokenizer):
    model = easily_ending(tiny_model(model_type))
    model.generation_config.update(repetition_penalty=5.0, num_beams=2, suppress_tokens=[EOS])
    found = write(model, tokenizer, 3, 30)
    assert found.tolist() == [slowly(model, tokenizer, n, 30) for n in range(3)]
    assert (found == EOS).sum() > 1  # documents have ended
    assert found.max() < len(tokenizer) < VOCABULARY  # which knows fewer tokens than the model
    assert model.generation_config.num_beams == 2


def test_what_is_written_does_not_depend_on_what_is_written_beside_it(tokenizer):
    model = tiny_model("llama")
    five = write(model, tokenizer, 5, 16)
    assert torch.equal(write(model, tokenizer, 2, 16), five[:2])
    assert len({tuple(row) for row in five.tolist()}) == 5  # each by numbers of its own
    assert not torch.equal(five, write(model, tokenizer, 5, 16, seed=8))


def test_half_of_the_documents_begin_with_a_random_ordinary_token(tokenizer):
    first = write(tiny_model("llama"), tokenizer, 200, 2)[:, 0]
    plain = first == BOS
    assert 80 < plain.sum() < 120
    random = set(first[~plain].tolist())
    assert len(random) > 40
    assert not random & set(tokenizer.all_special_ids)


def test_a_random_token_follows_bos_where_the_tokenizer_adds_one():
    found = write(tiny_model("gemma"), byte_tokenizer(bos=True), 80, 2)
    assert (found[:, 0] == BOS).all()
    assert len(set(found[:, 1].tolist())) > 20


def test_without_bos_documents_begin_with_eos_and_it_is_not_repeated(monkeypatch):
    monkeypatch.setattr(synthetic, "RANDOM_STARTS", 0.0)
    tokenizer, model = byte_tokenizer(), easily_ending(tiny_model("llama"))
    tokenizer.bos_token = None
    found = write(model, tokenizer, 4, 60)
    assert (found[:, 0] == EOS).all()
    assert (found == EOS).sum() > 10
    for number, row in enumerate(found.tolist()):  # the model's own draws, and nothing between
        chances = torch.rand(CHANCES, 60, generator=noise(number))[0]
        for place in range(1, 60, 7):
            logits = model(torch.tensor([row[:place]])).logits[:, -1, : len(tokenizer)]
            assert row[place] == int(synthetic.sampled(logits, chances[place, None]))


def test_every_token_is_drawn_as_often_as_the_model_predicts_it(tokenizer):
    """A frequency test: 4,000 draws after the same token, over all tokens at once."""
    logits = tiny_model("llama")(torch.tensor([[BOS]])).logits[0, -1, : len(tokenizer)]
    expected = 4000 * logits.softmax(-1)
    chances = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    drawn = synthetic.sampled(logits.expand(4000, -1), chances)
    found = torch.bincount(drawn, minlength=len(tokenizer))
    often = expected > 20
    excess = ((found - expected) ** 2 / expected)[often]
    assert often.sum() > 10
    assert excess.mean() < 2  # 1 on average where the draws are true


def test_the_end_of_a_turn_ends_no_document():
    """Where EOS is what ends a turn, the model itself writes whose turn comes next."""
    tokenizer = byte_tokenizer()
    assert Documents.of(tiny_model("llama"), tokenizer).ends == {EOS}
    tokenizer.chat_template = TEMPLATE
    assert not Documents.of(tiny_model("llama"), tokenizer).ends


def test_a_bos_that_opens_a_turn_begins_no_document():
    """After it the model writes who speaks; a model whose tokenizer adds BOS to every text knows it
    as the beginning of one."""
    for adds, start in ((False, ()), (True, (BOS,))):
        tokenizer = byte_tokenizer(bos=adds)
        assert Documents.of(tiny_model("llama"), tokenizer).start == (BOS,)
        tokenizer.chat_template = TEMPLATE
        assert Documents.of(tiny_model("llama"), tokenizer).start == start
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_special_tokens({"additional_special_tokens": [SEPARATOR]})
    separator = tokenizer.convert_tokens_to_ids(SEPARATOR)
    assert Documents.of(tiny_model("llama"), tokenizer).start == (separator,)


def test_a_model_that_predicts_no_numbers_is_refused(tokenizer):
    model = tiny_model("llama")
    model.get_output_embeddings().weight.fill_(torch.inf)
    with pytest.raises(InputError, match="dtype: the model predicts what is no finite number"):
        write(model, tokenizer, 8, 8)


def test_as_many_at_once_as_fit(monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(synthetic, "CPU_BATCH", 32)
    assert fitting_batch(model, 128) == 32
    monkeypatch.setattr(synthetic, "free_memory", lambda device: 500_000)
    # 0.6 · 500,000 bytes; a sequence takes 2 · 3 layers · 2 heads · 8 · 128 tokens · 4 bytes of
    # cache, and 16 · 320 where tokens are drawn
    assert fitting_batch(model, 128) == 300_000 // (49_152 + 5_120)


def test_how_many_tokens_is_asked_only_where_some_are_written():
    with pytest.raises(InputError) as raised:
        check_settings(TextConfig(self_tokens=-1))
    assert raised.value.field == "self_tokens"
    for names in (("self",), ("a.txt", "self"), ("general",), ("mine.toml",)):
        text = TextConfig(text=tuple(map(Path, names)), self_tokens=64)
        PruneConfig("m", text=text).validate()
    for name in ("text", "examples"):
        text = TextConfig(**{name: (Path("a.txt"),)}, self_tokens=64)
        with pytest.raises(InputError, match=r"self_tokens: .* writes none; .*add `text` self"):
            PruneConfig("m", text=text).validate()


# What lies in the folder of a run.


def writer_in(folder: Path, **changes) -> Writer:
    """A writer of 6 sequences in a run that has begun; of two at once by the fixture below."""
    run = changes.pop("run", run_in(folder))
    config = PruneConfig("m", text=TextConfig(self_tokens=changes.pop("self_tokens", 0)))
    training = replace(config.training, length=changes.pop("length", LENGTH))
    machine = replace(config.machine, seed=changes.pop("seed", 0))
    config = replace(config, training=training, machine=machine)
    model, source = tiny_model("llama"), {"revision": changes.pop("revision", "r")}
    loaded = Loaded(model, byte_tokenizer(), FAMILIES["llama"], source, torch.float32)
    told = {name: changes.pop(name) for name in ("progress", "stop_requested") if name in changes}
    writer = Writer(
        Job(config, run, changes.pop("process", one_process()), **told),
        loaded,
        Needs(learning=64, held_out=30),
        begin=lambda: None if run.result() else run.update(**BEGUN) and None,
    )
    return replace(writer, **changes)


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
    write: Callable = synthetic.write_sequences

    def counting(model, documents, chances, *arguments):
        counts.append(len(chances))
        return write(model, documents, chances, *arguments)

    monkeypatch.setattr(synthetic, "write_sequences", counting)
    return counts


@pytest.fixture
def whole(tmp_path) -> GivenText:
    return writer_in(tmp_path / "whole").write()


def test_a_later_training_reads_other_text(whole, tmp_path):
    """That which follows in the same stream."""
    later = tokens(writer_in(tmp_path / "later", skipped=2).write())
    assert later[: -2 * LENGTH] == tokens(whole)[2 * LENGTH :]
    assert later[-2 * LENGTH :] != tokens(whole)[: 2 * LENGTH]


def test_a_file_a_batch_and_all_of_them_recorded(tmp_path):
    told: list[tuple[int, int]] = []

    def progress(stage: str, done: int, total: int, figures: dict) -> None:
        told.append((done, total))

    text = writer_in(tmp_path, progress=progress).write()
    files = sorted((tmp_path / "synthetic").iterdir())
    assert [file.name for file in files] == [f"000{i}.safetensors" for i in range(3)]
    assert tokens(text) == torch.cat([load_file(f)["tokens"] for f in files]).flatten().tolist()
    result = Run(tmp_path).result()
    assert list(result["files"]) == [f"synthetic/{file.name}" for file in files]
    assert result["synthetic"]["sequences"] == 6
    assert text.held_out == result["synthetic"]["held_out"] == 30
    assert text.name == "its own text, 96 tokens"
    assert told == [(done, 96) for done in range(2, 98, 2)]


@pytest.mark.parametrize("stop", [1, 2 * LENGTH, 3 * LENGTH - 1])
def test_an_interrupted_attempt_goes_on_after_its_last_batch(stop, whole, counted, tmp_path):
    asked = iter(range(10_000))
    stopped = writer_in(tmp_path, stop_requested=lambda: next(asked) == stop)
    with pytest.raises(Interrupted):
        stopped.write()
    done = len(list((tmp_path / "synthetic").glob("*.safetensors")))
    assert done == stop // LENGTH
    counted.clear()
    assert tokens(writer_in(tmp_path).write()) == tokens(whole)
    assert counted == [2] * (3 - done)


def test_a_file_that_was_not_recorded_is_written_again(whole, counted, tmp_path):
    """As after a kill between the two."""
    path = tmp_path / "synthetic" / "0001.safetensors"
    writer_in(tmp_path).write()
    Run(tmp_path).forget(path)
    save_file({"tokens": torch.zeros(2, LENGTH).int()}, path)
    counted.clear()
    assert tokens(writer_in(tmp_path).write()) == tokens(whole)
    assert counted == [2]


def test_a_file_that_has_changed_is_refused(tmp_path):
    writer_in(tmp_path).write()
    save_file({"tokens": torch.zeros(2, LENGTH).int()}, tmp_path / "synthetic/0001.safetensors")
    with pytest.raises(InputError, match="is not the file that was written"):
        writer_in(tmp_path).write()


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"other": torch.zeros(2, LENGTH).int()}, "there is no tokens"),
        ({"tokens": torch.zeros(2, LENGTH)}, "tokens is torch.float32"),
        ({"tokens": torch.zeros(2, 7).int()}, r"tokens is torch.int32 \(2, 7\)"),
        ({"tokens": torch.zeros(0, LENGTH).int()}, r"tokens is torch.int32 \(0, 16\)"),
    ],
)
def test_a_damaged_file_is_refused_although_anything_goes(tensors, said, tmp_path):
    writer_in(tmp_path).write()
    save_file(tensors, tmp_path / "synthetic" / "0001.safetensors")
    with pytest.raises(InputError, match=said):
        writer_in(tmp_path, run=Run(tmp_path, anyway=True)).write()


@pytest.mark.parametrize(("name", "value"), [("seed", 1), ("revision", "s"), ("length", 8)])
def test_text_of_other_settings_is_refused(name, value, tmp_path):
    writer_in(tmp_path).write()
    with pytest.raises(InputError, match=f"synthetic: was written with another {name};"):
        writer_in(tmp_path, **{name: value}).write()


def test_how_much_there_is_belongs_to_the_run(whole, counted, tmp_path):
    """Such as of another number of processes."""
    writer_in(tmp_path).write()
    counted.clear()
    again = writer_in(tmp_path, needs=Needs(1000, 200)).write()
    assert tokens(again) == tokens(whole)
    assert again.held_out == 30
    assert not counted


def test_a_run_that_was_made_of_other_text_gets_none(tmp_path):
    source = {"model": "m", "revision": "r", "text": "t", "eval_text": "e"}
    run = run_in(tmp_path)
    run.update(**BEGUN, source=source)
    with pytest.raises(InputError, match=r"text: is not what .* was made of"):
        writer_in(tmp_path).write()
    assert not (tmp_path / "synthetic").exists()


@pytest.mark.parametrize(
    ("asked", "needs", "share", "count"),
    [
        (0, Needs(64, 30), 1.0, 96),
        (0, Needs(64, 30), 0.5, 48),
        (0, Needs(0, 0), 1.0, LENGTH),
        (33, Needs(64, 30), 1.0, 48),
        (33, Needs(64, 30, seconds=1e9), 1.0, 48),
    ],
)
def test_as_many_as_are_read(asked, needs, share, count, tmp_path):
    text = writer_in(tmp_path, self_tokens=asked, needs=needs).write(share)
    assert len(tokens(text)) == count
    assert text.held_out is not None
    assert text.held_out <= count // 2


def test_while_there_is_time_and_at_least_as_many_as_are_needed(monkeypatch, tmp_path):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(synthetic.time, "perf_counter", lambda: float(next(clock)))
    text = writer_in(tmp_path, needs=Needs(16, 16, seconds=35.0)).write()
    more = len(tokens(text)) // LENGTH
    assert more > 2
    assert Run(tmp_path).result()["synthetic"]["sequences"] == more
    late = writer_in(tmp_path / "late", needs=Needs(80, 16, seconds=0.1)).write()
    assert len(tokens(late)) == 6 * LENGTH


def test_text_for_several_runs_is_kept_in_each(whole, counted, tmp_path):
    ready = writer_in(tmp_path, ready=whole, needs=Needs(1, 1)).write()
    assert tokens(ready) == tokens(whole)
    assert ready.held_out == whole.held_out
    assert tokens(writer_in(tmp_path, needs=Needs(1, 1)).write()) == tokens(whole)
    assert not counted


def test_other_processes_read_and_record_nothing(whole, counted, tmp_path):
    writer_in(tmp_path).write()
    before = (tmp_path / "result.json").read_bytes()
    counted.clear()

    def begin() -> None:
        raise AssertionError

    class Second(Process):
        is_main = False

    one = one_process()
    other = writer_in(tmp_path, process=Second(one.accelerator, one.device), begin=begin)
    assert tokens(other.write()) == tokens(whole)
    assert not counted
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
