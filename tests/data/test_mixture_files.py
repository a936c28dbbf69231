"""`--text general` and TOML files like it, with tiny stand-ins for the hub's data sets."""

import json
from pathlib import Path

import datasets
import pytest
from conftest import SMALL, byte_tokenizer, must_run

from disp_llm.config.errors import InputError
from disp_llm.config.parts import TextConfig
from disp_llm.config.texts import load_mixture
from disp_llm.data import sources
from disp_llm.data.sources import read_sources
from disp_llm.data.tokens import load_tokens


def texts_of(mixture, tokens: int) -> list:
    return [one.text for one in read_sources(TextConfig(text=(mixture,)), tokens=tokens).learning]


MIXTURE = """
title = "Stand-ins"

[texts.web]
dataset = "WEB"
weight = 3

[texts.code]
files = ["$CODE/code.jsonl"]
field = "content"
weight = 1
"""


@pytest.fixture
def mixture(tmp_path, monkeypatch) -> Path:
    """A mixture of a data set of 100 rows of 50 characters and of a file."""
    monkeypatch.setenv("CODE", str(tmp_path))
    rows = [{"text": f"{i:02} {'web ' * 12}"[:50]} for i in range(100)]
    (tmp_path / "web").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "web" / "train.parquet")
    code = [json.dumps({"content": f"print({i})\n" * 20}) for i in range(20)]
    (tmp_path / "code.jsonl").write_text("\n".join(code))
    path = tmp_path / "mine.toml"
    path.write_text(MIXTURE.replace("WEB", str(tmp_path / "web")))
    return path


def test_a_mixture_has_a_source_for_every_text_drawn_by_its_weight(mixture):
    texts = load_tokens(TextConfig(text=(mixture,)), byte_tokenizer())
    assert texts.corpus.weights == (0.75, 0.25)
    assert texts.corpus.names == ("web/", "code.jsonl")
    assert len(texts.corpus.streams[0]) == int(0.9 * (100 * 50 + 99 * 2))
    assert texts.names["eval_text"] == "the last 10% of web/, code.jsonl"


def test_a_data_set_is_read_as_far_as_the_steps_need(mixture, monkeypatch):
    monkeypatch.setattr(sources, "LEAST_OF_MIXTURE", 120)
    read = [sum(map(len, texts_of(mixture, tokens)[0].documents)) for tokens in (0, 200, 100_000)]
    assert read == [150, 750, 5000]  # whole rows: 120, 5 · 200 · 3/4, all
    mixture.write_text(mixture.read_text().replace("weight = 3", "weight = 3\ncharacters = 290"))
    web, _ = texts_of(mixture, 100_000)
    assert sum(map(len, web.documents or ())) == 300


def test_revision_and_split_are_asked_of_the_hub(monkeypatch, tmp_path):
    asked = []

    def load_dataset(*names, **options):
        asked.append((names, options))
        return iter([{"body": "text"}] * 9)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    path = tmp_path / "hub.toml"
    path.write_text(
        "[texts.a]\ndataset = 'o/n:c:s'\nrevision = 'v1'\nfield = 'body'\ncharacters = 9\n"
        "[texts.b]\ndataset = 'o/m'\nfield = 'body'"
    )
    monkeypatch.setattr(sources, "LEAST_OF_MIXTURE", 4)
    a, b = texts_of(path, 0)
    assert (len(a.documents or ()), len(b.documents or ())) == (3, 1)
    assert asked == [
        (("o/n", "c"), {"split": "s", "revision": "v1", "streaming": True}),
        (("o/m", None), {"split": "train", "revision": None, "streaming": True}),
    ]


def test_mixed_with_other_text_its_weights_share_what_it_has(mixture, text_file):
    config = TextConfig(text=(text_file, mixture), weights=(1, 1))
    corpus = load_tokens(config, byte_tokenizer()).corpus
    assert corpus.weights == (0.5, 0.375, 0.125)
    corpus = load_tokens(TextConfig(text=(text_file, mixture)), byte_tokenizer()).corpus
    lengths = [len(stream) for stream in corpus.streams]
    whole = sum(lengths[1:]) / sum(lengths)
    assert corpus.weights == pytest.approx((1 - whole, 0.75 * whole, 0.25 * whole))


def test_a_run_learns_from_a_mixture(mixture, llama_folder, tmp_path):
    done = must_run(
        "prune", llama_folder, "--text", mixture, "self", "--weights", 1, 1,
        "--output-dir", tmp_path / "run", "--json", *SMALL,
    )  # fmt: skip
    source = json.loads(done.stdout)["source"]
    assert source["text"].startswith("web/, code.jsonl, synthetic text")


def test_what_is_measured_after_recovery_was_not_learned_from_before(
    mixture, llama_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(sources, "LEAST_OF_MIXTURE", 120)
    flags = ("--text", mixture, "--length", 32, "--context", 32, "--windows", 1, "--batch", 1)
    flags = (*flags, "--dtype", "float32", "--device", "cpu", "--json")
    pruned = must_run(
        "prune", llama_folder, "--steps", 8, "--calibration-sequences", 8,
        "--calibration-length", 32, "--rounds", 0, "--output-dir", tmp_path / "run", *flags,
    )  # fmt: skip
    recovered = must_run(
        "recover",
        tmp_path / "run/keep-0.5",
        "--tokens",
        64,
        "--output-dir",
        tmp_path / "more",
        *flags,
    )
    before, after = (json.loads(done.stdout)["source"] for done in (pruned, recovered))
    for key in ("text_sha256", "eval_text_sha256"):  # as far as before, not to the middle of it
        assert after[key] == before[key]


def test_the_shipped_mixture_is_whole():
    found = load_mixture(Path("general"))
    assert {"web", "code", "german", "mathematics", "dialogue"} <= found.texts.keys()
    assert all(text.dataset.count(":") == 2 for text in found.texts.values())
    assert read_sources(TextConfig(text=(Path("self"),))).writes


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "names no texts"),
        ("[text.a]", r"unknown key 'text'"),
        ("[texts.a]\ndataset = 'x'\nrows = 3", r"unknown key 'texts.a.rows'"),
        ("[texts.a]\nweight = 1", "name either files or a dataset"),
        ("[texts.a]\nfiles = ['mine.toml']\ndataset = 'x'", "name either files or a dataset"),
        ("[texts.a]\nfiles = ['mine.toml']\nrevision = 'x'", "are those of a dataset"),
        ("[texts.a]\nfiles = ['gone.txt']", r"texts\S*files\S*: there is no .*gone.txt"),
        ("[texts.a]\nfiles = ['$NO_SUCH/a']", "variable NO_SUCH is not set"),
        ("[texts.a]\ndataset = 'x'\nweight = 0", "expected float > 0"),
        ("[texts.a]\ndataset = '/no/such'", r"texts.a: cannot load /no/such"),
        ("[texts.a]\nfiles = ['empty.jsonl']", r"texts.a: .*empty.jsonl is empty"),
    ],
)
def test_careless_mixtures_are_refused_in_one_line(content, said, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(content)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match=said) as raised:
        load_tokens(TextConfig(text=(path,)), byte_tokenizer())
    assert raised.value.field == str(path)
    assert "\n" not in str(raised.value)
