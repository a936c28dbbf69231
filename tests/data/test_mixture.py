"""Several sources: windows come from each in its share."""

import json
import math

import pytest
import torch
from conftest import SMALL, byte_tokenizer, must_refuse, must_run

from disp_llm.config.parts import TextConfig
from disp_llm.data.tokens import load_tokens
from disp_llm.data.windows import Corpus

STREAMS = tuple(torch.arange(1000 * i, 1000 * i + 1000 - 100 * i) for i in range(4))


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def source_of(windows: torch.Tensor) -> torch.Tensor:
    """The stream that every window is a part of."""
    sources = windows // 1000
    assert torch.equal(sources, sources[:, :1].expand_as(sources))
    return sources[:, 0]


def test_windows_come_from_their_source_in_its_share():
    windows = Corpus(STREAMS[:2], (0.25, 0.75)).draw(2000, 10, noise()).tokens
    assert windows.shape == (2000, 10)
    sources = source_of(windows)
    assert int((sources == 1).sum()) == 1500
    assert not torch.equal(sources, sources.sort().values)


def test_a_small_batch_is_not_all_of_a_kind_and_no_source_is_favoured():
    weights, draws = (0.1, 0.2, 0.3, 0.4), noise()
    corpus = Corpus(STREAMS, weights)
    drawn = [source_of(corpus.draw(4, 10, draws).tokens) for _ in range(2000)]
    counts = [torch.bincount(sources, minlength=4) for sources in drawn]
    for found, weight in zip(torch.stack(counts, 1), weights, strict=True):
        assert set(found.tolist()) <= {math.floor(4 * weight), math.ceil(4 * weight)}
        assert float(found.double().mean()) == pytest.approx(4 * weight, abs=0.05)


def test_files_are_sources_and_each_is_held_out_from(tmp_path):
    for name, letter, count in (("a", "a", 1000), ("b", "b", 500)):
        (tmp_path / name).write_text(letter * count)
    files = (tmp_path / "a", tmp_path / "b")
    texts = load_tokens(TextConfig(text=files, weights=(3, 1)), byte_tokenizer())
    corpus, held_out, sources = texts.corpus, texts.evaluation, texts.names
    assert [len(stream) for stream in corpus.streams] == [900, 450]
    assert corpus.weights == (0.75, 0.25)
    assert byte_tokenizer().decode(held_out) == "a" * 100 + "b" * 50
    assert sources["eval_text"] == "the last 10% of a, b"


def test_what_is_held_out_is_read_in_turn(tmp_path):
    """So that the first windows are of every text, as often as it is learned from."""
    pieces = {"a": 6, "b": 2, "c": 1}
    for letter, count in pieces.items():
        (tmp_path / letter).write_text(letter * count * 10240)
    files = tuple(tmp_path / letter for letter in pieces)
    texts = load_tokens(TextConfig(text=files, weights=(2, 1, 1)), byte_tokenizer())
    held_out = byte_tokenizer().decode(texts.evaluation)
    assert held_out[::1024] == "aabcaabaa"
    assert len(held_out) == 9 * 1024
    texts = load_tokens(TextConfig(text=files, weights=(2, 1, 1)), byte_tokenizer(), context=256)
    held_out = byte_tokenizer().decode(texts.evaluation)
    assert held_out[::256].startswith("aabcaabc")  # pieces are windows, however short these are


def test_a_run_of_short_windows_is_measured_on_every_text(llama_folder, tmp_path):
    for letter in "ab":  # the held-out tenth of each is more than all windows of SMALL
        (tmp_path / letter).write_text(letter * 12_000)
    done = must_run(
        "prune", llama_folder, "--text", tmp_path / "a", tmp_path / "b", "--weights", 1, 1,
        "--method", "random", "--output-dir", tmp_path / "run", "--json", *SMALL,
    )  # fmt: skip
    of_a, of_b, *others = json.loads(done.stdout)["original"]["measured"]["window_losses"]
    assert of_a != of_b
    assert others == [of_a, of_b]


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--weights", "1"), "--weights: must be as many as there are texts (2;"),
        (("--weights", "1", "-1"), "--weights: out of range; give a number above 0"),
        (("--weights", "nan", "1"), "--weights: out of range; give a number above 0"),
        (("--weights", "1", "inf"), "--weights: out of range; give a number of at most "),
    ],
)
def test_careless_weights(llama_folder, text_file, tmp_path, flags, word):
    done = must_refuse("prune", llama_folder, "--text", text_file, text_file, *flags)
    assert word in done.stderr


def test_no_window_of_what_is_held_out_is_of_two_texts(tmp_path):
    """Ends that are no whole number of windows come last, and shift no others."""
    for letter, count in (("a", 10_000), ("b", 10_000), ("c", 1_500)):
        (tmp_path / letter).write_text(letter * count)
    files = tuple(tmp_path / letter for letter in "abc")
    config = TextConfig(text=files, weights=(3, 3, 4))
    held_out = load_tokens(config, byte_tokenizer(), context=100).evaluation
    windows = held_out.unfold(0, 100, 100)
    texts = byte_tokenizer().decode(windows[:, 0])
    assert texts == "cab" + "ab" * 9
    assert (windows == windows[:, :1]).all()
    assert len(held_out) == 2150
