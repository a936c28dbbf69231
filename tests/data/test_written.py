"""Own words in a run folder: what is written again, what is not, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import BEGUN, byte_tokenizer, run_in, tiny_model
from safetensors.torch import load_file, save_file

from disp_llm.config.errors import InputError
from disp_llm.config.parts import PerplexityConfig, TextConfig
from disp_llm.config.words import OwnWordsConfig
from disp_llm.data import written
from disp_llm.data.sources import GivenText
from disp_llm.data.written import Needs, Writer, held_out
from disp_llm.runs.folder import Run
from disp_llm.runs.job import Interrupted

LENGTH = 16


def writer_in(folder: Path, **changes) -> Writer:
    """A writer of 6 sequences, 2 at once, in a run that has begun."""
    run = run_in(folder)
    writer = Writer(
        model=tiny_model("llama"),
        tokenizer=byte_tokenizer(),
        settings=OwnWordsConfig(self_batch=2),
        length=LENGTH,
        seed=0,
        revision="r",
        needs=Needs(learning=64, held_out=30),
        run=run,
        begin=lambda: None if run.result() else run.update(**BEGUN) and None,
    )
    return replace(writer, **changes)


def tokens(text: GivenText) -> list[int]:
    assert text.tokens is not None
    return text.tokens.tolist()


@pytest.fixture
def counted(monkeypatch) -> list[range]:
    """The sequences that are written from here on."""
    numbers: list[range] = []
    write: Callable = written.write_sequences

    def counting(model, openings, which, *arguments):
        numbers.append(which)
        return write(model, openings, which, *arguments)

    monkeypatch.setattr(written, "write_sequences", counting)
    return numbers


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> GivenText:
    return writer_in(tmp_path_factory.mktemp("whole")).write()


def test_a_later_training_reads_other_words(tmp_path):
    """Those that follow in the same stream."""
    whole, later = (
        tokens(writer_in(tmp_path / name, skipped=skipped).write())
        for name, skipped in (("whole", 0), ("later", 2))
    )
    assert later[: -2 * LENGTH] == whole[2 * LENGTH :]
    assert later[-2 * LENGTH :] != whole[: 2 * LENGTH]


def test_a_file_a_batch_and_all_of_them_recorded(whole, tmp_path):
    text = writer_in(tmp_path).write()
    assert tokens(text) == tokens(whole)
    files = sorted((tmp_path / "words").iterdir())
    assert [file.name for file in files] == [f"000{i}.safetensors" for i in range(3)]
    assert tokens(text) == torch.cat([load_file(f)["tokens"] for f in files]).flatten().tolist()
    result = Run(tmp_path).result()
    assert list(result["files"]) == [f"words/{file.name}" for file in files]
    assert result["own_words"]["sequences"] == 6
    assert text.held_out == result["own_words"]["held_out"] == 30
    assert text.name == "its own words, 96 tokens, temperature 1"


@pytest.mark.parametrize("stop", [1, 2 * LENGTH, 3 * LENGTH - 1])
def test_an_interrupted_attempt_goes_on_after_its_last_batch(stop, whole, counted, tmp_path):
    asked = iter(range(10_000))
    stopped = writer_in(tmp_path, stop_requested=lambda: next(asked) == stop)
    with pytest.raises(Interrupted):
        stopped.write()
    done = len(list((tmp_path / "words").glob("*"))) if (tmp_path / "words").exists() else 0
    assert done == stop // LENGTH
    counted.clear()
    assert tokens(writer_in(tmp_path).write()) == tokens(whole)
    assert counted == [range(i, i + 2) for i in range(2 * done, 6, 2)]


def test_a_file_that_was_not_recorded_is_written_again(whole, counted, tmp_path):
    """As after a kill between the two."""
    writer_in(tmp_path).write()
    Run(tmp_path).forget(tmp_path / "words" / "0001.safetensors")
    save_file({"tokens": torch.zeros(2, LENGTH).int()}, tmp_path / "words" / "0001.safetensors")
    counted.clear()
    assert tokens(writer_in(tmp_path).write()) == tokens(whole)
    assert counted == [range(2, 4)]


def test_a_file_that_has_changed_is_refused(tmp_path):
    writer_in(tmp_path).write()
    path = tmp_path / "words" / "0001.safetensors"
    save_file({"tokens": torch.zeros(2, LENGTH).int()}, path)
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
    save_file(tensors, tmp_path / "words" / "0001.safetensors")
    with pytest.raises(InputError, match=said):
        writer_in(tmp_path, run=Run(tmp_path, anyway=True)).write()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"revision": "s"}, "revision"),
        ({"length": 8}, "length"),
        ({"settings": OwnWordsConfig(self_batch=2, self_temperature=0.5)}, "temperature"),
        ({"settings": OwnWordsConfig(self_batch=2, self_chat=0.5)}, "chat"),
    ],
)
def test_words_of_other_settings_are_refused(change, name, tmp_path):
    writer_in(tmp_path).write()
    with pytest.raises(InputError, match=f"words: were written with another {name};"):
        writer_in(tmp_path, **change).write()


def test_how_many_there_are_belongs_to_the_run(whole, counted, tmp_path):
    """Such as of another number of processes."""
    writer_in(tmp_path).write()
    counted.clear()
    again = writer_in(tmp_path, needs=Needs(1000, 200)).write()
    assert tokens(again) == tokens(whole)
    assert again.held_out == 30
    assert not counted


def test_a_run_that_was_made_of_other_text_gets_no_words(tmp_path):
    source = {"model": "m", "revision": "r", "text": "t", "eval_text": "e"}
    Run(tmp_path).update(**BEGUN, source=source)
    with pytest.raises(InputError, match=r"text: is not what .* was made of"):
        writer_in(tmp_path).write()
    assert not (tmp_path / "words").exists()


@pytest.mark.parametrize(
    ("settings", "needs", "share", "count"),
    [
        (OwnWordsConfig(), Needs(64, 30), 1.0, 96),
        (OwnWordsConfig(), Needs(64, 30), 0.5, 48),
        (OwnWordsConfig(), Needs(0, 0), 1.0, LENGTH),
        (OwnWordsConfig(self_tokens=33), Needs(64, 30), 1.0, 48),
        (OwnWordsConfig(self_tokens=33), Needs(64, 30, seconds=1e9), 1.0, 48),
    ],
)
def test_as_many_as_are_read(settings, needs, share, count, tmp_path):
    text = writer_in(tmp_path, settings=settings, needs=needs).write(share)
    assert len(tokens(text)) == count
    assert text.held_out is not None
    assert text.held_out <= count // 2


def test_while_there_is_time_and_at_least_as_many_as_are_needed(monkeypatch, tmp_path):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(written.time, "perf_counter", lambda: float(next(clock)))
    text = writer_in(tmp_path, needs=Needs(16, 16, seconds=35.0)).write()
    more = len(tokens(text)) // LENGTH
    assert more > 2
    assert Run(tmp_path).result()["own_words"]["sequences"] == more
    late = writer_in(tmp_path / "late", needs=Needs(80, 16, seconds=0.1)).write()
    assert len(tokens(late)) == 6 * LENGTH


def test_words_for_several_runs_are_kept_in_each(whole, counted, tmp_path):
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

    other = writer_in(tmp_path, records=False, begin=begin)
    assert tokens(other.write()) == tokens(whole)
    assert not counted
    assert (tmp_path / "result.json").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "evaluation", "expected"),
    [
        (TextConfig(), PerplexityConfig(context=32, windows=4), 128),
        (TextConfig(), PerplexityConfig(context=32, stride=8, windows=4), 56),
        (TextConfig(), PerplexityConfig(windows=0), 100),
        (TextConfig(eval_text=(Path("x"),)), PerplexityConfig(), 0),
        (TextConfig(eval_dataset="x:y"), PerplexityConfig(), 0),
    ],
)
def test_what_is_only_measured_on_is_written_too(text, evaluation, expected):
    assert held_out(text, evaluation, learning=900) == expected
