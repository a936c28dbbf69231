"""Several sources: windows come from each in its share, and dynamic loading moves the shares."""

import json
import math

import pytest
import torch
from conftest import SMALL, byte_tokenizer, one_process, run_command

from disp_llm.config.parts import TextConfig
from disp_llm.data.mixture import EVERY, RATE, Mixture
from disp_llm.data.tokens import Corpus, load_tokens

STREAMS = (torch.arange(0, 1000), torch.arange(1000, 1400))


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_windows_come_from_their_source_in_its_share():
    windows, sources = Mixture(Corpus(STREAMS, (0.25, 0.75))).draw(2000, 10, noise())
    windows = windows.tokens
    assert windows.shape == (2000, 10)
    assert torch.equal((windows >= 1000).all(1), sources == 1)
    assert torch.equal((windows < 1000).all(1), sources == 0)
    assert int((sources == 1).sum()) == 1500
    assert not torch.equal(sources, sources.sort().values)


def test_a_small_batch_is_not_all_of_a_kind_and_no_source_is_favoured():
    mixture, draws = Mixture(Corpus(STREAMS * 2, (0.1, 0.2, 0.3, 0.4))), noise()
    counts = [torch.bincount(mixture.draw(4, 10, draws)[1], minlength=4) for _ in range(2000)]
    for found, weight in zip(torch.stack(counts, 1), mixture.weights.tolist(), strict=True):
        assert set(found.tolist()) <= {math.floor(4 * weight), math.ceil(4 * weight)}
        assert float(found.double().mean()) == pytest.approx(4 * weight, abs=0.05)


def test_shares_follow_the_loss_above_the_dense_models():
    mixture = Mixture(Corpus(STREAMS, (0.5, 0.5), dynamic=True))
    dense_losses = {0: 3.0, 1: 1.0}
    mixture.measure_reference(
        lambda windows: torch.full((1,), dense_losses[int(windows.tokens.min() >= 1000)]),
        10,
        noise(),
    )
    process = one_process()
    for _ in range(EVERY):  # both lose, the second twice as much; the first even below the dense
        mixture.record_losses(torch.tensor([0, 1, 1]), torch.tensor([2.5, 1.5, 2.5]), process)
    mixture.update(EVERY - 1)
    assert mixture.weights.tolist() == [0.5, 0.5]  # not yet
    mixture.update(EVERY)
    grown = math.exp(RATE * 1.0)
    assert mixture.weights.tolist() == pytest.approx([1 / (1 + grown), grown / (1 + grown)])
    assert not mixture.sums.any()
    before = mixture.weights.tolist()
    mixture.update(2 * EVERY)  # nothing was seen since
    assert mixture.weights.tolist() == before


def test_fixed_shares_stay():
    mixture = Mixture(Corpus(STREAMS, (0.5, 0.5)))
    mixture.record_losses(torch.tensor([0, 1]), torch.tensor([1.0, 9.0]), one_process())
    mixture.update(EVERY)
    assert mixture.weights.tolist() == [0.5, 0.5]


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
    done = run_command(
        "prune", llama_folder, "--text", tmp_path / "a", tmp_path / "b", "--weights", 1, 1,
        "--method", "random", "--output-dir", tmp_path / "run", "--json", *SMALL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    of_a, of_b, *others = json.loads(done.stdout)["dense"]["window_losses"]
    assert of_a != of_b
    assert others == [of_a, of_b]


@pytest.mark.parametrize("method", ["ddp", "grasprune"])
def test_methods_of_others_follow_dynamic_loading(
    method, llama_folder, text_file, tmp_path, monkeypatch
):
    def loses_on_the_first_alone(mixture: Mixture, *asked: object) -> None:
        mixture.get_buffer("reference").copy_(torch.tensor([0.0, 99.0]))

    monkeypatch.setattr(Mixture, "measure_reference", loses_on_the_first_alone)
    other = tmp_path / "other.txt"
    other.write_text("Nothing here resembles the other file. " * 200)
    command = (
        "prune", llama_folder, "--text", text_file, other, "--weights", 1, 3, "--mix", "dynamic",
        "--method", method, *SMALL, "--steps", 12, "--output-dir",
    )  # fmt: skip
    done = run_command(*command, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    mixtures = [json.loads(line)["mixture"] for line in lines]
    assert mixtures[:10] == [[0.25, 0.75]] * 10
    assert mixtures[11][0] > 0.3


def test_prune_with_dynamic_loading(llama_folder, text_file, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("Nothing here resembles the other file. " * 200)
    done = run_command(
        "prune", llama_folder, "--text", text_file, other, "--weights", 1, 3, "--mix", "dynamic",
        "--output-dir", tmp_path / "run", "--json", *SMALL, "--steps", 12,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    mixtures = [json.loads(line)["mixture"] for line in lines]
    assert mixtures[:10] == [[0.25, 0.75]] * 10
    assert sum(mixtures[11]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--weights", "1"), "--weights: 1 for 2; give one number above 0 for each text of --text"),
        (("--weights", "1", "-1"), "--weights: -1.0 is too small;"),
        (("--weights", "nan", "1"), "--weights: nan is no number;"),
        (("--weights", "1", "inf"), "--weights: inf is too large;"),
        (("--mix", "dynamic"), "--mix: has nothing to mix"),
    ],
)
def test_careless_weights(llama_folder, text_file, tmp_path, flags, word):
    done = run_command("prune", llama_folder, "--text", text_file, text_file, *flags)
    assert done.returncode == 2
    assert word in done.stderr
