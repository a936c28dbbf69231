"""`prune --vocabulary`: a smaller vocabulary through every command that follows."""

import json
import math
import random
import shutil
import tomllib
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from conftest import must_refuse, must_run, run_command, tiny_model
from tokenizers import decoders, models, pre_tokenizers, trainers

import disp_llm
from disp_llm.commands import sizes
from disp_llm.commands.vocabulary import told_tokens
from disp_llm.config.errors import InputError
from disp_llm.config.names import COUPLED
from disp_llm.config.parts import PerplexityConfig, PlaceConfig
from disp_llm.data.spelling import Spelling
from disp_llm.data.windows import eval_windows
from disp_llm.masks.budget import Budget, TooSmall, project
from disp_llm.masks.costs import byte_costs
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.loading import load
from disp_llm.models.trimming import with_tokens
from disp_llm.runs.folder import Run
from disp_llm.training.losses import in_fewer_tokens

WORDS = [f"{a}{b}{c}" for a in ("st", "tr", "m", "") for b in "aeiou" for c in ("nd", "rk", "t")]
SIZE, FEWER = 340, 300


def written(words: list[str], seed: int, count: int = 6000) -> str:
    return " ".join(random.Random(seed).choices(words, k=count))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny Llama whose tokenizer knows many words, and texts of some of these."""
    folder = tmp_path_factory.mktemp("vocabulary")
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
    )  # fmt: skip
    made.train_from_iterator([written(WORDS, 0)], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>"
    )
    model = tiny_model("llama", vocab_size=SIZE, bos_token_id=0, eos_token_id=1)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "some.txt").write_text(written(WORDS[::3], 1))
    (folder / "new.txt").write_text(written(WORDS, 2))
    return folder


def pruned(place, name: str, *more):
    said = must_run(
        "prune", place / "model", "--vocabulary", FEWER, "--text", place / "some.txt",
        "--eval-text", place / "new.txt", "--context", 64, "--windows", 4, "--length", 32,
        "--calibration-length", 32, "--calibration-sequences", 2, "--rounds", 0,
        "--align", 1, "--dtype", "float32", "--output-dir", place / name, "--json",
        *(more if "--steps" in more else ("--steps", 2, *more)),
    )  # fmt: skip
    return json.loads(said.stdout)


@pytest.fixture(scope="module")
def run(place):
    return pruned(place, "run", "--keep", 1, 0.6)


@pytest.fixture(scope="module")
def untrained(place):
    """The folder in which nothing but the vocabulary has changed."""
    (size,) = pruned(place, "untrained", "--keep", 1, "--steps", 0)["models"]
    return size["folder"]


def test_speed_is_that_beside_the_original_with_all_of_its_tokens(place, monkeypatch):
    """A smaller head is a part of what is won."""
    timed = []

    def against(original, model, *rest):
        timed.append((original.config.vocab_size, model.config.vocab_size))
        return {}

    monkeypatch.setattr(sizes, "speed_against", against)
    pruned(place, "timed", "--keep", 0.8)
    must_run("export", place / "timed", "--keep", 0.6)
    assert timed == [(SIZE, FEWER)] * 2


def test_a_tokenizer_that_is_longer_than_the_embedding_is_not_cut(place, tmp_path):
    """As where somebody adds a token for padding and no row: its number is beyond all rows."""
    model = Path(shutil.copytree(place / "model", tmp_path / "model"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(model)
    few = ("--steps", 2, "--length", 32, "--context", 32, "--windows", 2, "--rounds", 0)
    text = ("--text", place / "some.txt", *few, "--device", "cpu", "--output-dir")
    done = must_refuse("prune", model, "--keep", 1, "--vocabulary", FEWER, *text, tmp_path / "run")
    said = f"the tokenizer has {SIZE + 1} tokens, and the embedding only {SIZE} rows"
    assert f"--vocabulary: {said}" in done.stderr
    done = must_run("prune", model, "--fit", 0.9, "--bits", "as-is", *text, tmp_path / "fit")
    assert f"the vocabulary stays whole: vocabulary: {said}" in done.stderr


def test_an_amount_that_fewer_tokens_alone_reach_is_no_refusal(place):
    """Neither one that the model fits in once tokens have gone, nor one below the smallest model
    of the whole vocabulary; export writes both as well."""
    loaded = load(str(place / "model"), PlaceConfig("cpu"))
    target = PrunableModel.of(loaded, COUPLED)
    whole, layout = target.parameters, target.layout
    trimmed = with_tokens(loaded.model, range(FEWER)).num_parameters()
    by_all = Budget(layout, byte_costs(layout, whole, 1), COUPLED)
    with pytest.raises(TooSmall) as refused:
        project(torch.zeros(layout.entries), by_all, 0.0)
    most = (whole + trimmed) / 2
    least = refused.value.least * whole - (whole - trimmed) / 2
    amounts = [f"{amount / 1e6:.6f}M" for amount in (most, least)]
    found = pruned(place, "amounts", "--budget", "total", "--fit", *amounts)["models"]
    assert found[0]["parameters"] == trimmed
    assert found[1]["parameters"] <= least
    more = must_run(
        "export", place / "amounts", "--budget", "total", "--fit", f"{most / 1e6 - 1e-6:.6f}M",
        f"{least / 1e6 + 1e-6:.6f}M", "--no-measure", "--json",
    )  # fmt: skip
    written = json.loads(more.stdout)["models"]
    assert [one["parameters"] for one in written] == [one["parameters"] for one in found]
    for amount, said in ((whole, "the original fits in"), (1000, "is less than the smallest")):
        done = must_refuse(
            "prune", place / "model", "--vocabulary", FEWER, "--text", place / "some.txt",
            "--length", 32, "--context", 64, "--budget", "total", "--fit", f"{amount / 1e6:.6f}M",
            "--output-dir", place / "no amount",
        )  # fmt: skip
        assert said in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("pad", [-1, None, SIZE])
def test_tokens_that_a_configuration_names_stay_if_there_are_such(place, pad):
    loaded = load(str(place / "model"), PlaceConfig("cpu"))
    loaded.model.config.pad_token_id = pad
    assert told_tokens(loaded) == {0, 1}


def loss_by_whole_token(model, small, whole, stream) -> float:
    """−ln p of windows, as anybody would compute it from the exported folder."""
    lost, count = 0.0, 0
    for window in eval_windows(stream, PerplexityConfig(context=64, windows=4)):
        spelled = [
            small.backend_tokenizer.token_to_id(part)
            for token in whole.convert_ids_to_tokens(window.tolist())
            for part in (
                [token]
                if token in small.get_vocab()
                else [piece.value for piece in small.backend_tokenizer.model.tokenize(token)]
            )
        ]
        first = whole.convert_ids_to_tokens(int(window[0]))
        given = (
            1 if first in small.get_vocab() else len(small.backend_tokenizer.model.tokenize(first))
        )
        ids = torch.tensor(spelled)
        logits = model(ids[None]).logits[0, :-1].float().log_softmax(-1)
        losses = -logits.gather(1, ids[1:, None])[:, 0]
        lost += float(losses[given - 1 :].double().sum())
        count += len(window) - 1
    return lost / count


@torch.no_grad()
def test_the_loss_is_by_token_of_the_whole_vocabulary(place, run):
    whole = transformers.AutoTokenizer.from_pretrained(place / "model")
    stream = torch.tensor(whole((place / "new.txt").read_text())["input_ids"])
    for size in run["models"]:
        folder = size["folder"]
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        small = transformers.AutoTokenizer.from_pretrained(folder)
        assert len(small) == model.config.vocab_size == size["vocabulary"] == FEWER
        card = (Path(folder) / "README.md").read_text()
        assert f"{FEWER} of the original's tokens" in card
        found = loss_by_whole_token(model, small, whole, stream)
        assert math.log(size["measured"]["perplexity"]) == pytest.approx(found, rel=1e-4)


@torch.no_grad()
def test_logits_of_kept_tokens_are_the_originals_to_the_bit(place, untrained):
    folder = untrained
    original = transformers.AutoModelForCausalLM.from_pretrained(place / "model").eval()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    small, whole = (
        transformers.AutoTokenizer.from_pretrained(one) for one in (folder, place / "model")
    )
    kept = torch.tensor(whole.convert_tokens_to_ids(small.convert_ids_to_tokens(range(FEWER))))
    ids = torch.randint(FEWER, (2, 40), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(ids).logits, original(kept[ids]).logits[..., kept])
    text = (place / "new.txt").read_text()[:500]
    assert small.decode(small(text)["input_ids"]) == text
    assert model.config.eos_token_id == small.eos_token_id
    assert model.generation_config.eos_token_id == small.eos_token_id


def test_only_the_vocabulary_cut_is_a_model_of_the_originals_own_class(place, untrained):
    folder = untrained
    must_run("convert", folder, "--to", "plain", "--output-dir", place / "plain")
    config = json.loads((place / "plain" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["vocab_size"] == FEWER
    assert not list((place / "plain").glob("*.py"))


def test_another_size_has_the_same_vocabulary(place, run):
    for more in ([], ["--no-measure"]):
        name = "0.7" if more else "0.8"
        must_run("export", place / "run", "--keep", name, *more, "--json")
        small = transformers.AutoTokenizer.from_pretrained(place / f"run/keep-{name}")
        first = transformers.AutoTokenizer.from_pretrained(place / "run/keep-0.6")
        assert small.get_vocab() == first.get_vocab()


def test_recover_and_eval_count_tokens_of_the_original(place, run):
    suite = place / "suite.toml"
    suite.write_text(
        f'title = "New"\ncontext = 64\nwindows = 4\n[texts.New]\nfiles = ["{place}/new.txt"]\n'
    )
    said = must_run(
        "recover", place / "run/keep-0.6", "--text", place / "some.txt", "--eval-text",
        place / "new.txt", "--context", 64, "--windows", 4, "--length", 32, "--tokens", 256,
        "--suite", suite, "--dtype", "float32", "--output-dir", place / "better", "--json",
    )  # fmt: skip
    found = json.loads(said.stdout)
    size = next(size for size in run["models"] if size["size"] == "0.6")
    before = found["before"]["measured"]
    assert before["perplexity"] == pytest.approx(size["measured"]["perplexity"], rel=1e-4)
    assert before["tokens"] == size["measured"]["tokens"]
    assert found["before"]["scores"]["general_ratio"] > 0
    said = must_run(
        "eval", place / "better/model", "--suite", suite, "--dtype", "float32", "--json"
    )
    alone = json.loads(said.stdout)
    after = found["model"]["scores"]["general_ratio"]
    assert alone["general_ratio"] == pytest.approx(after, rel=1e-3)
    said = run_command(
        "eval", place / "run/keep-0.6", "--text", place / "new.txt", "--context", 64,
        "--windows", 4, "--dtype", "float32", "--json",
    )  # fmt: skip
    alone = json.loads(said.stdout)
    assert alone["perplexity"] < size["measured"]["perplexity"]  # of its own, shorter, tokens
    assert alone["bits_per_byte"] > 0


def test_the_teacher_expects_words_by_their_beginnings():
    """Each token has the probability of all that begin with it; of the words, none is lost."""
    drawn = torch.Generator().manual_seed(0)
    logits = 40 * torch.randn(2, 3, 9, generator=drawn)
    first = torch.tensor([0, 1, 2, 0, 0, 3, 1, 3])  # of eight tokens; the ninth row is padding
    found = in_fewer_tokens(lambda hidden: hidden, first, 4)(logits)
    whole = logits.softmax(-1)
    for token in range(4):
        mass = whole[..., [number for number in range(8) if first[number] == token]].sum(-1)
        torch.testing.assert_close(found.exp()[..., token] / logits.exp().sum(-1), mass)
    assert found.isfinite().all()


def test_words_that_must_stay(place):
    (place / "words.txt").write_text("strund\ntrort\n")
    folder = place / "run-of-words"
    pruned(place, folder.name, "--keep", 1, "--keep-tokens", place / "words.txt")
    small, whole = (
        transformers.AutoTokenizer.from_pretrained(one)
        for one in (folder / "keep-1", place / "model")
    )
    for word in ("strund", " trort"):
        assert small.tokenize(word) == whole.tokenize(word)
    run = Run(folder)
    assert run.result()["inputs"]["keep_tokens"].keys() == {str(place / "words.txt")}
    stored = tomllib.loads(run.config_file.read_text())
    assert stored["vocabulary"]["keep_tokens"] == [str(place / "words.txt")]


def test_answers_are_counted_by_whole_token(place):
    rows = [
        {"prompt": written(WORDS[::3], n, 6), "answer": written(WORDS, n, 4)} for n in range(40)
    ]
    (place / "examples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = must_run(
        "prune", place / "model", "--vocabulary", FEWER, "--keep", 1, "--steps", 0, "--rounds", 0,
        "--examples", place / "examples.jsonl", "--template", "plain", "--length", 64,
        "--context", 64, "--calibration-length", 32, "--calibration-sequences", 2, "--align", 1,
        "--dtype", "float32", "--output-dir", place / "of-examples", "--json",
    )  # fmt: skip
    found = json.loads(done.stdout)
    size, original = found["models"][0]["measured"], found["original"]["measured"]
    assert size["tokens"] == original["tokens"]
    folder = place / "of-examples/keep-1"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    small = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "model")
    spelling = Spelling.between(tokenizer, small)
    lost, tokens = 0.0, 0
    for row in rows[9::10]:  # every tenth is measured on
        prompt = torch.tensor(tokenizer(row["prompt"])["input_ids"])
        answer = torch.tensor([*tokenizer(row["answer"])["input_ids"], tokenizer.eos_token_id])
        ids, pieces = spelling(torch.cat([prompt, answer])), spelling(answer)
        with torch.no_grad():
            logits = model(ids[None]).logits[0, -len(pieces) - 1 : -1].log_softmax(-1)
        lost -= float(logits.gather(1, pieces[:, None]).sum())
        tokens += len(answer)
    assert tokens == size["tokens"]
    assert lost / tokens == pytest.approx(math.log(size["perplexity"]), rel=1e-4)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--vocabulary", "10"], "--vocabulary: 10 tokens are fewer than have to stay"),
        (["--vocabulary", "340"], "--vocabulary: 340 tokens, and the tokenizer has 340"),
        (["--keep-tokens", "words.txt"], "--keep-tokens: is of a vocabulary that is cut"),
        (["--vocabulary", "300", "--keep-tokens", "none.txt"], "none.txt: No such file"),
        (["--vocabulary", "300", "--shard", "full"], "--vocabulary: is cut of a model"),
    ],
)
def test_what_cannot_be_is_one_line(place, more, said):
    found = must_refuse(
        "prune", place / "model", "--text", place / "some.txt", "--length", 32, "--context", 64,
        "--output-dir", place / "none", *more,
    )  # fmt: skip
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("disp-llm: ")
    assert said in last
    assert not (place / "none").exists()


def test_a_tokenizer_of_another_kind_is_refused(place, tmp_path):
    from tokenizers.models import WordLevel

    made = tokenizers.Tokenizer(
        WordLevel({"[UNK]": 0, **{w: i for i, w in enumerate(WORDS, 1)}}, "[UNK]")
    )
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "model")
    with pytest.raises(InputError, match="kind WordLevel has no vocabulary that can be cut"):
        disp_llm.prune(
            model, words, text=[written(WORDS, 3)], vocabulary=20, length=32, context=64,
            output_dir=tmp_path / "run",
        )  # fmt: skip


def test_an_example_that_is_too_long_in_pieces_is_named(place, untrained):
    whole, small = (
        transformers.AutoTokenizer.from_pretrained(one) for one in (place / "model", untrained)
    )
    spelling = Spelling.between(whole, small)
    tokens_of = {word: torch.tensor(whole(f" {word}")["input_ids"]) for word in WORDS}
    rare = [word for word in WORDS if int(spelling.lengths(tokens_of[word]).max()) > 1]
    rows = [{"prompt": " ".join(rare[n : n + 12]), "answer": "m"} for n in range(12)]
    longest = max(len(whole(row["prompt"])["input_ids"]) for row in rows) + 2
    path = place / "rare.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    done = must_refuse(
        "recover", untrained, "--teacher", place / "model", "--examples", path,
        "--template", "plain", "--length", longest, "--context", longest, "--tokens", 64,
        "--batch", 1, "--dtype", "float32", "--output-dir", place / "of-rare",
    )  # fmt: skip
    assert f"and a window takes {longest}" in done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def short(place):
    """The same model with positions for 128 tokens."""
    whole = place / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(whole)
    model = tiny_model(
        "llama", vocab_size=SIZE, bos_token_id=0, eos_token_id=1, max_position_embeddings=128
    )
    model.save_pretrained(place / "short")
    tokenizer.save_pretrained(place / "short")
    return place / "short"


def of_few_positions(place, short, name: str, *more: object):
    return run_command(
        "prune", short, "--text", place / "some.txt", "--eval-text", place / "new.txt",
        "--windows", 2, "--length", 32, "--calibration-length", 32, "--calibration-sequences", 2,
        "--steps", 1, "--rounds", 0, "--align", 1, "--dtype", "float32",
        "--output-dir", place / name, "--json", *more,
    )  # fmt: skip


@pytest.mark.parametrize("size", [("--vocabulary", FEWER, "--keep", 0.8), ("--fit", "0.9")])
def test_a_model_of_few_positions_is_measured_in_windows_that_leave_room(place, short, size):
    """Fewer tokens make longer windows."""
    done = of_few_positions(place, short, f"short{size[0]}", *size)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["models"][0]["measured"]["window"] == 64


def test_recovery_of_few_positions_leaves_that_room_too(place, short):
    (size,) = json.loads(
        of_few_positions(place, short, "few", "--vocabulary", FEWER, "--keep", 0.8).stdout
    )["models"]
    recover = (
        "recover", size["folder"], "--text", place / "some.txt", "--eval-text", place / "new.txt",
        "--windows", 2, "--length", 32, "--tokens", 128, "--dtype", "float32", "--json",
        "--output-dir", place / "recovered few",
    )  # fmt: skip
    last = must_refuse(*recover, "--context", 128).stderr.splitlines()[-1]
    assert last.startswith("disp-llm: --context: a window takes")
    assert not (place / "recovered few").exists()
    found = json.loads(must_run(*recover).stdout)
    assert found["before"]["measured"]["window"] == 64
    measured = size["measured"]["perplexity"]
    assert found["before"]["measured"]["perplexity"] == pytest.approx(measured, rel=1e-4)


def test_a_suite_whose_windows_grow_too_long_is_refused_before_anything_is_learned(place, short):
    suite = place / "long.toml"
    suite.write_text(f'context = 128\nwindows = 2\n[texts.New]\nfiles = ["{place}/new.txt"]\n')
    done = of_few_positions(place, short, "unsuited", "--vocabulary", FEWER, "--suite", suite)
    assert done.returncode == 2
    said = "long.toml: texts.New: a window takes "
    assert said in done.stderr.splitlines()[-1]
    assert not (place / "unsuited").exists()
    done = of_few_positions(place, short, "suited", "--vocabulary", FEWER, "--keep", 0.8)
    (size,) = json.loads(done.stdout)["models"]
    last = must_refuse("eval", size["folder"], "--suite", suite).stderr.splitlines()[-1]
    assert said in last
    assert "give a smaller one" in last
    must_refuse(
        "recover", size["folder"], "--text", place / "some.txt", "--windows", 2, "--length", 32,
        "--tokens", 128, "--suite", suite, "--output-dir", place / "recovered unsuited",
    )  # fmt: skip
    assert not (place / "recovered unsuited").exists()


def test_a_window_that_grows_too_long_is_refused_by_its_name(place, short):
    done = of_few_positions(place, short, "none", "--vocabulary", FEWER, "--context", 128)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("disp-llm: --context: a window takes")
    assert not (place / "none").exists()
