"""What looks like a secret or a path of a machine in an original's settings stays at home, at any
depth; nothing else does."""

import json
import logging
import re

import transformers
from conftest import byte_tokenizer, masks_of, tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from in_memory import export_folder

from disp_llm.exporter.stripping import SETTINGS, strip_foreign
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.architectures import family_of

LONG = "aB3dE6gH9jK2mN5pQ8sT1vW4"
PLACES = (
    "/home/me/llama", "/data/models/llama/", "~/models/llama", "C:\\Users\\me\\llama",
    "file:///home/me/llama", "/Users/me/x",
)  # fmt: skip
NAMES = (
    "api_key", "OPENAI_API_KEY", "apiKey", "api-key", "password", "secret", "client_secret",
    "access_token", "auth_token", "use_auth_token", "credentials", "hf_token", "HF_TOKEN",
    "aws_secret_access_key", "private_key",
)  # fmt: skip
"""Names of settings whose value is a secret whatever it is."""

HARMLESS = {
    "bos_token": "", "pad_token": {"content": "/usr/bin/env", "lstrip": False}, "b_token_id": 1,
    "extra_special_tokens": ["/home/x/y", "<|password|>"], "image_token": f"hf_{LONG}",
    "added_tokens_decoder": {"0": {"content": "/a/b/c"}}, "chat_template": "{{ '/home/me/x' }}",
    "id2label": {"0": "/m/09x0r"}, "label2id": {"PASSWORD": 3, "/m/09x0r": 0}, "vocab": {"/a/b": 0},
    "model_type": "llama", "_name": "org/name", "sk": "sk-learn-pipelines-of-long-names",
    "url": "https://example.com/home/x", "mime": "image/png", "password": None, "secret": False,
    "use_auth_token": True, "num_tokens": 5, "token_type_ids": [0, 1], "hf_device_map": {"": 0},
    "secretary": "x", "keys": ["a"], "hidden_act": "silu", "rate": 1e-5, "path": "a.bin",
}  # fmt: skip
"""What looks alike and stays."""


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
keys = st.text(st.sampled_from("abcxyz_.é\n"), max_size=8)
public = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
)


@st.composite
def planted(draw, depth: int = 3):
    """An object with private values in it, the same without them, and their number."""
    whole, wanted, count = {}, {}, 0
    for key in draw(st.lists(keys, max_size=3, unique=True)):
        kind = draw(st.sampled_from(["public", "value", "list", "inside"] if depth else ["value"]))
        if kind == "public":
            whole[key] = wanted[key] = draw(public)
        elif kind == "value":
            whole[key], count = draw(st.sampled_from(PLACES)), count + 1
        elif kind == "list":
            before, after = draw(public), draw(public)
            whole[key], count = [before, draw(st.sampled_from(PLACES)), after], count + 1
            wanted[key] = [before, after]
        else:
            whole[key], wanted[key], more = draw(planted(depth - 1))
            count += more
    for key in draw(st.lists(st.sampled_from(NAMES), max_size=1)):
        whole[key], count = draw(st.sampled_from(["x", ["x"], {"user": "x"}])), count + 1
    for key in draw(st.lists(st.sampled_from(sorted(HARMLESS)), max_size=2)):
        if key not in whole:
            whole[key] = wanted[key] = HARMLESS[key]
    return whole, wanted, count


@settings(max_examples=300, suppress_health_check=list(HealthCheck), deadline=None)
@given(planted(), st.sampled_from(SETTINGS))
def test_everything_else_survives(tmp_path_factory, found, name):
    whole, wanted, count = found
    folder = tmp_path_factory.mktemp("settings")
    (folder / name).write_text(json.dumps(whole))
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("disp_llm.exporter.stripping")
    logger.addHandler(handler)
    strip_foreign(folder)
    logger.removeHandler(handler)
    assert json.loads((folder / name).read_text()) == wanted
    assert len(said) == bool(count)
    assert sum(line.count(f" in {name}") for line in said) == count
    assert not any(secret in line for line in said for secret in PLACES)


def test_an_exported_folder_has_none(tmp_path, caplog):
    """The command of the list: a key in config.json, a path inside tokenizer_config.json."""
    original, exported = tmp_path / "original", tmp_path / "exported"
    tiny_model("llama").save_pretrained(original)
    byte_tokenizer().save_pretrained(original)
    for name, more in (
        ("config.json", {"api_key": f"hf_{LONG}", "nested": [{"password": "x", "kept": 1}]}),
        ("tokenizer_config.json", {"added": {"p": "/home/me/words", "kept": 2}}),
    ):
        path = original / name
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    model = transformers.AutoModelForCausalLM.from_pretrained(original).requires_grad_(False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(original)
    target = PrunableModel(model, family_of(model.config))
    export_folder(target, tokenizer, masks_of("random", target.layout), exported, "5GB")
    config, words = (json.loads((exported / name).read_text()) for name in SETTINGS[:3:2])
    assert "api_key" not in config
    assert (config["nested"], words["added"]) == ([{"kept": 1}], {"kept": 2})
    (line,) = [
        record.getMessage() for record in caplog.records if "left out" in record.getMessage()
    ]
    assert line.startswith("left out, as secrets or paths of a machine: api_key in config.json, ")
    assert set(re.findall(r"[\w.\[\]]+ in \w+", line)) == {
        "api_key in config", "nested[0].password in config", "added.p in tokenizer_config"
    }  # fmt: skip
