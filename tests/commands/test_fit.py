"""`prune --fit`: one amount, from which tokens, bits and sizes follow."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from conftest import SMALL, must_refuse, must_run, run_command, tiny_model, tiny_prunable
from test_fewer_tokens import place as place_of_words

import disp_llm
from disp_llm.commands.fitting import HeldOut
from disp_llm.commands.report import PruneResult
from disp_llm.commands.room import Room, expected_loss, expected_range, possible_bits, stored
from disp_llm.config.names import SITES
from disp_llm.config.parts import BudgetConfig, MachineConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.data.windows import Corpus
from disp_llm.exporter.folders import weight_bytes
from disp_llm.exporter.formats import int4
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.architectures import family_of
from disp_llm.models.loading import load

place = place_of_words

MODELS = Path(__file__).parents[2] / "experiments" / "results" / "models.json"
SHAPES = {
    "hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "num_hidden_layers": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def wide(place):
    """A model whose layers consist of groups of 32."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "model")
    model = tiny_model("llama", vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, **SHAPES)
    model.to(torch.bfloat16).save_pretrained(place / "wide")
    tokenizer.save_pretrained(place / "wide")
    return place / "wide"


def fitted(place: Path, model: Path, name: str, *more: object):
    return run_command(
        "prune", model, "--text", place / "some.txt", "--eval-text", place / "new.txt",
        "--context", 64, "--windows", 2, "--length", 32, "--calibration-length", 32,
        "--calibration-sequences", 2, "--steps", 2, "--rounds", 0, "--align", 32,
        "--dtype", "bfloat16", "--output-dir", place / name, "--json", *more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "heads", "widths", "grouped"),
    [
        ("llama", True, {"head_dim": 32}, True),
        ("llama", True, {"head_dim": 16}, False),  # a head that goes takes half a group
        ("llama", False, {"head_dim": 16}, True),
        ("gemma4_text", False, {"head_dim": 32, "global_head_dim": 64}, True),
        ("gemma4_text", False, {"head_dim": 4, "global_head_dim": 64}, False),
    ],
)
def test_four_bits_ask_for_groups_wherever_a_layer_is_cut(model_type, heads, widths, grouped):
    """Of Gemma 4, whose blocks have heads of several widths, too."""
    target = tiny_prunable(model_type, heads=heads, **SHAPES | {"num_hidden_layers": 3} | widths)
    config = PruneConfig("tiny", budget=BudgetConfig(fit=(0.5,)))
    assert ("int4" in possible_bits(config, target, 32)) == grouped
    assert "int8" in possible_bits(config, target, 1)


@pytest.mark.parametrize("asked", [0.001, "0.001MB", "0.001M"])
@pytest.mark.parametrize("least", [0.12341, 0.2, 0.25679, 1 / 3])
def test_what_is_said_to_be_the_smallest_has_room(asked, least):
    """Both what is said and the share of the blocks that fits it are rounded."""
    target = tiny_prunable("llama")

    def room(size: float | str) -> Room:
        return Room.of(PruneConfig("tiny", budget=BudgetConfig(fit=(size,))), target, 4)

    for tokens in (100, 150, 200):
        refusal = str(room(asked).too_small(least, tokens))
        (said,) = re.findall(r"the smallest model, ([\w.]+);", refusal)
        has_room = room(said if isinstance(asked, str) else float(said))
        assert max(has_room.keep(bits, tokens) for bits in has_room.ways) >= least


@pytest.mark.parametrize(
    ("asked", "bits"),
    [("0.8", ["int8"]), ("0.45", ["int4"]), ("0.75", ["as-is"]), ("200000", [])],
)
def test_what_is_written_fits(place, wide, asked, bits):
    dense = weight_bytes(wide)
    amount = f"{float(asked) / 1e6:g}MB" if asked == "200000" else asked
    parameters = transformers.AutoModelForCausalLM.from_pretrained(wide).num_parameters()
    limit = float(asked) if asked == "200000" else float(asked) * 2 * parameters
    name = f"fit-{amount}-{'-'.join(bits)}"
    done = fitted(place, wide, name, "--fit", amount, *(["--bits", *bits] if bits else []))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    folder = place / name / f"fit-{amount}"
    assert weight_bytes(folder) <= found["fit"]["limit"] == pytest.approx(limit, rel=0.01)
    assert weight_bytes(folder) < dense
    chosen = next(one for one in found["fit"]["choices"] if one["bits"] == found["fit"]["chosen"])
    assert chosen["bytes"] == weight_bytes(folder)
    assert chosen["ratio"] == min(one["ratio"] for one in found["fit"]["choices"])
    assert not bits or chosen["bits"] in bits
    small = transformers.AutoTokenizer.from_pretrained(folder)
    whole = transformers.AutoTokenizer.from_pretrained(wide)
    assert len(small) == (found["fit"]["vocabulary"] or len(whole))
    must_run("eval", folder, "--text", place / "new.txt", "--context", 64, "--json")
    assert "fits    " in done.stderr
    page = (place / name / "report.html").read_text()
    assert f"fits {amount}" in page
    assert f"fit-{amount}&#34;" in page or f'fit-{amount}"' in page, "the snippet loads it"
    must_run("verify", place / name)
    resumed = fitted(place, wide, name, "--fit", amount, "--resume",
                     *(["--bits", *bits] if bits else []))  # fmt: skip
    assert json.loads(resumed.stdout)["fit"] == found["fit"]


def test_a_method_of_one_size_makes_the_best_choice_alone(place, wide):
    """Of bits and sizes that are predicted to be about as good, another method makes all."""
    flags = ("--text", place / "some.txt", "--fit", 0.9, "--align", 32, *SMALL)
    choices = {}
    for method in ("fisher", "wanda"):
        folder = place / f"fit-by-{method}"
        done = must_run("prune", wide, "--method", method, "--output-dir", folder, "--json", *flags)
        choices[method] = [one["bits"] for one in json.loads(done.stdout)["fit"]["choices"]]
    assert len(choices["fisher"]) > 1
    assert choices["wanda"] == choices["fisher"][:1]


def test_rows_that_no_token_has_are_counted(place):
    """Many models have more rows in their embedding than their tokenizer has tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "model")
    model = tiny_model("llama", vocab_size=1024, bos_token_id=0, eos_token_id=1, **SHAPES)
    model.to(torch.bfloat16).save_pretrained(place / "padded")
    tokenizer.save_pretrained(place / "padded")
    limit = round(0.8 * weight_bytes(place / "padded"))
    asked = ("--fit", f"{limit}e-6MB", "--bits", "as-is")
    done = fitted(place, place / "padded", "fit-padded", *asked)
    assert done.returncode == 0, done.stderr
    assert weight_bytes(place / f"fit-padded/fit-{limit / 1e6:g}MB") <= limit


@pytest.mark.parametrize("chunk", [1, 12, 32])
def test_what_says_which_dimensions_are_kept_fits_too(place, chunk):
    """Eight bytes for each chunk of the stream at each of its sites: of a wide stream more than
    what files take to name tensors."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "model")
    shapes = SHAPES | {"hidden_size": 768}
    model = tiny_model("llama", vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, **shapes)
    model.to(torch.bfloat16).save_pretrained(place / "stream")
    tokenizer.save_pretrained(place / "stream")
    limit, name = round(0.6 * weight_bytes(place / "stream"), -3), f"fit-stream-{chunk}"
    done = fitted(
        place, place / "stream", name, "--fit", f"{limit}e-6MB", "--bits", "as-is", "--sites",
        *SITES, "--chunk", chunk, "--align", 1, "--least-cut", 0,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = weight_bytes(place / name / f"fit-{limit / 1e6:g}MB")
    assert 0.97 * limit < written <= limit


def test_the_model_of_a_result_is_what_fits(place, wide):
    done = fitted(place, wide, "result", "--fit", "0.15MB", "--bits", "int8")
    assert done.returncode == 0, done.stderr
    result = PruneResult(place / "result", json.loads(done.stdout), "cpu")
    fits = place / "result/fit-0.15MB"
    for share in (None, "0.15MB", "150000e-6 mb", "0.00015GB"):
        assert result._model_folder(share) == fits
    intermediate = result.sizes[0]
    assert result._model_folder(intermediate.share_asked) == Path(intermediate.folder)


def test_what_fits_is_made_again_from_another_folder(place, wide, monkeypatch, tmp_path):
    asked = ("--fit", "0.15MB", "--bits", "int8", "--output-dir")
    monkeypatch.chdir(tmp_path)
    assert fitted(place, wide, "named later", *asked, "run").returncode == 0
    shutil.rmtree("run/fit-0.15MB")
    monkeypatch.chdir(place)
    done = fitted(place, wide, "named later", *asked, tmp_path / "run", "--resume")
    assert done.returncode == 0, done.stderr


def test_doctor_says_what_is_left_of_the_blocks(wide):
    told = must_run("doctor", wide, "--fit", "0.7", "--json")
    fits = {one["bits"]: one["keep"] for one in json.loads(told.stdout)["fits"]}
    assert fits["as-is"] < fits["int8"]
    must_refuse("doctor", wide, "--fit", "1GB")
    said = must_refuse("doctor", wide, "--fit", "0.001MB").stderr
    assert "--fit: 0.001MB is less than the smallest model, 0." in said


def test_parameters_leave_bits_alone(place, wide):
    done = fitted(place, wide, "by-parameters", "--fit", "0.09M")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one["bits"] for one in found["fit"]["choices"]] == ["as-is"]
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "by-parameters/fit-0.09M")
    assert model.num_parameters() <= 90_000


@pytest.mark.parametrize("bits", ["as-is", "int8", "int4"])
@pytest.mark.parametrize("tied", [True, False])
def test_bytes_are_foretold(place, bits, tied, tmp_path):
    """Of the whole model, a little more than there are: what is asked for is not passed."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "model")
    model = tiny_model(
        "llama", vocab_size=len(tokenizer), tie_word_embeddings=tied, bos_token_id=0,
        eos_token_id=1, **SHAPES,
    ).to(torch.bfloat16)  # fmt: skip
    way = stored(PrunableModel(model, family_of(model.config)), bits, 2)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    done = must_run(
        "prune", tmp_path / "model", "--keep", 1, "--text", place / "some.txt", "--length", 32,
        "--context", 64, "--windows", 1, "--rounds", 0, "--dtype", "bfloat16", "--output-dir",
        tmp_path / "run",
    )  # fmt: skip
    folder = tmp_path / "run/keep-1"
    if bits != "as-is":
        done = must_run(
            "convert", folder, "--to", bits, "--embeddings", "--output-dir", tmp_path / bits
        )
        folder = tmp_path / bits
    done = run_command("eval", folder, "--text", place / "new.txt", "--context", 64, "--json")
    assert json.loads(done.stdout)["parameters"] == model.num_parameters()  # tied ones once
    foretold = way.rest + way.blocks + way.token * len(tokenizer)
    assert 0 <= foretold - weight_bytes(folder) <= 3 * 256 * len(model.state_dict())


def test_what_decides_is_not_learned_from(wide):
    """The held-out end and the text before it share no token, of a text with room for both."""
    loaded = load(str(wide), MachineConfig(device="cpu"))
    lengths = (6000, 300, 100)
    ends = [start + length for start, length in zip((0, 10_000, 20_000), lengths, strict=True)]
    streams = tuple(
        torch.arange(end - length, end) for length, end in zip(lengths, ends, strict=True)
    )
    held = HeldOut.of(Corpus(streams, weights=(1.0, 1.0, 1.0)), loaded)
    learned = [set(stream.tolist()) for stream in held.before.streams]
    read = set(held.stream.tolist())
    assert held.context == 64
    assert [len(one) for one in learned] == [5400, 300 - 64, 100]
    assert not read & learned[0]
    assert not read & learned[1]
    assert read & learned[2], "too short to part"


@pytest.mark.parametrize("kind", ["text", "examples"])
def test_int4_is_calibrated_on_what_was_learned_from(place, wide, kind, tmp_path, monkeypatch):
    """Not on the end that decides; and on examples and text in memory too."""
    parted, drawn = [], []
    part, draw = HeldOut.of, Corpus.draw

    def noted(corpus, count, length, noise):
        if count == 3:  # no other draw takes so many
            drawn.append(corpus)
        return draw(corpus, count, length, noise)

    monkeypatch.setattr(int4, "SEQUENCES", 3)
    monkeypatch.setattr(Corpus, "draw", noted)
    monkeypatch.setattr(HeldOut, "of", lambda *given: parted.append(part(*given)) or parted[-1])
    given = {"text": [(place / "some.txt").read_text()]}
    if kind == "examples":
        given = {"examples": [{"prompt": f"stand {n}", "answer": f" mark {n}"} for n in range(99)]}
    disp_llm.prune(
        wide, fit="0.1MB", bits="int4", output_dir=tmp_path / "run", context=64, windows=2,
        length=32, calibration_length=32, calibration_sequences=2, steps=2, rounds=0, align=32,
        dtype="bfloat16", **given,
    )  # fmt: skip
    folder = tmp_path / "run/fit-0.1MB"
    assert "(GPTQ)" in (folder / "README.md").read_text()
    [corpus] = drawn
    found, learned = corpus.streams[0], parted[0].before.streams[0]
    if kind == "examples":
        assert len(found.examples) == len(learned.examples)
        return
    whole, left = map(transformers.AutoTokenizer.from_pretrained, (wide, folder))
    assert left.decode(found) == whole.decode(learned)


def test_the_expected_loss_is_that_of_the_models():
    """Of the committed results, within what the curves miss."""
    found = json.loads(MODELS.read_text())
    for number, keep in enumerate((0.8, 0.5)):
        ratios = [one["models"][number]["general_ratio"] for one in found]
        assert expected_range(keep) == pytest.approx([min(ratios), max(ratios)], rel=0.02)
        mean = sum(map(math.log, ratios)) / len(ratios)
        assert expected_loss(keep) == pytest.approx(mean, rel=0.02)
    assert (expected_loss(1.0), expected_range(1.0)) == (0.0, [1.0, 1.0])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--fit", "1MB"], "--fit: the original fits in 1MB as it is"),
        (["--fit", "0.001MB"], "--fit: 0.001MB is less than the smallest model"),
        (
            ["--fit", "0.8", "--bits", "int4", "--align", "8"],
            "--bits: int4 cannot store this model",
        ),
        (["--fit", "0.5", "0.4"], "--fit: tokens and bits are decided for one size"),
        (["--fit", "0.5", "--keep", "0.6"], "--keep: is of block parameters"),
        (["--keep", "0.5", "--bits", "int8"], "--bits: is decided by --fit in megabytes"),
        (["--fit", "80ms", "--bits", "int8"], "--bits: is decided by --fit in megabytes"),
        (["--fit", "1.5"], "--fit: 1.5 is not a share"),
    ],
)
def test_what_cannot_be_is_one_line(place, wide, more, said):
    done = fitted(place, wide, "none", *more)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("disp-llm: ")
    assert said in last
    assert not (place / "none").exists()
