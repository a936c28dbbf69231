"""Weights are the files that a model names: what else lies beside them changes nothing, and a named
one that is damaged is a line that names it."""

import json
import shutil

import pytest
import torch
from conftest import SMALL, byte_tokenizer, must_run, run_command, tiny_model
from safetensors.torch import save

from disp_llm.models.files import INDEX, WEIGHTS, fingerprint, weight_files

STRAYS = ("model-00001-of-00002.safetensors", "model.fp16.safetensors", "weights.safetensors")
CONTENTS = {"junk": b"junk", "empty": b"", "other": save({"lm_head.weight": torch.ones(3)})}
KINDS = ("dense", "shards", "exported")


@pytest.fixture(scope="module")
def originals(small_run, tmp_path_factory):
    """A model of each kind."""
    place = tmp_path_factory.mktemp("models")
    for name, size in (("dense", "5GB"), ("shards", "20KB")):
        tiny_model("llama").save_pretrained(place / name, max_shard_size=size)
        byte_tokenizer().save_pretrained(place / name)
    shutil.copytree(small_run[0] / "keep-0.5", place / "exported")
    assert (place / "shards" / INDEX).exists()
    return place


@pytest.fixture
def folder(request, originals, tmp_path):
    return shutil.copytree(originals / request.param, tmp_path / "model")


def measured(folder, text_file):
    command = ["eval", folder, "--text", text_file, "--context", 32, "--windows", 2, "--json"]
    return run_command(*command, "--device", "cpu", "--dtype", "float32")


def is_refused(done, file) -> bool:
    """Whether the last line names the file."""
    line = done.stderr.splitlines()[-1]
    return done.returncode == 2 and line.startswith(f"disp-llm: {file}: cannot be read")


def with_strays(folder, content=b"junk"):
    for name in STRAYS:
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("folder", KINDS, indirect=True)
def test_a_stray_file_changes_nothing(folder, content, text_file):
    whole, known = measured(folder, text_file), fingerprint(folder)
    with_strays(folder, CONTENTS[content])
    assert (fingerprint(folder), measured(folder, text_file).stdout) == (known, whole.stdout)
    assert json.loads(whole.stdout)["perplexity"] > 1


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        ("dense", "prune"),
        ("shards", "prune"),
        ("exported", "recover"),
        ("exported", "convert"),
    ],
    indirect=["folder"],
)
def test_nothing_that_is_made_of_the_model_has_it(folder, command, text_file, tmp_path):
    text = ("--text", text_file, "--context", 32, "--windows", 2)
    flags = {
        "prune": (*SMALL, *text, "--method", "magnitude", "--keep", 0.5),
        "recover": (*text, "--tokens", 64, "--length", 32, "--distill", 0),
        "convert": ("--to", "int8"),
    }[command]
    made = []
    for name in ("whole", "stray"):
        place = tmp_path / name
        must_run(command, folder, "--output-dir", place, *flags)
        files = sorted(path.relative_to(place) for path in place.rglob("model*.safetensors"))
        made.append({file: (place / file).read_bytes() for file in files})
        with_strays(folder)
    assert made[0] == made[1]


@pytest.mark.parametrize("content", ["junk", "empty"])
@pytest.mark.parametrize("folder", KINDS, indirect=True)
def test_a_damaged_file_that_is_named(folder, content, text_file):
    named = weight_files(folder)[-1]
    named.write_bytes(CONTENTS[content])
    assert is_refused(measured(folder, text_file), named)


@pytest.mark.parametrize("folder", ["shards"], indirect=True)
def test_one_file_is_read_in_place_of_an_index(folder, text_file):
    """As transformers does."""
    (folder / WEIGHTS).write_bytes(b"junk")
    assert is_refused(measured(folder, text_file), folder / WEIGHTS)
    assert weight_files(folder) == [folder / WEIGHTS]
