"""Files of an exported folder: whatever is wrong in one is a line that names it, or changes
nothing."""

import json
import shutil

import pytest
from damage import BYTES, names, outcome, wrongly_read

from disp_llm.config.names import SITES
from disp_llm.exporter.facts import FACTS, read_facts
from disp_llm.exporter.formats.plain import plain_config
from disp_llm.runs.sums import CHANGED_FOLDER
from disp_llm.runs.tensors import read_tensors


@pytest.fixture
def folder(small_run, tmp_path):
    made = tmp_path / "model"
    shutil.copytree(small_run[0] / "keep-0.5", made)
    return made


def test_facts_behind_the_card(folder):
    versions = json.loads((folder / FACTS).read_text())["result"]["versions"]
    free = {*versions, "base_model", "license", "perplexity_stderr", "max_logit_error"}
    free |= {"max_logit_error_float32", "text_sha256", "eval_text_sha256"}
    wrong, refused = wrongly_read(
        folder / FACTS, lambda: read_facts(folder), tuple(free - {"disp-llm"})
    )
    assert not wrong
    assert refused > 200


def test_configuration(folder):
    path = folder / "config.json"
    whole, read = json.loads(path.read_text()), ("model_type", "architectures", "disp_llm")
    config = {key: whole[key] for key in (*read, "hidden_size", "intermediate_size")}
    config["disp_llm"]["widths"] = {
        site: [20 if site == "mlp_mid" else config["hidden_size"]] * 3 for site in SITES
    }
    path.write_text(json.dumps(config))
    wrong, refused = wrongly_read(path, lambda: plain_config(folder)["intermediate_size"])
    assert len(wrong) == 1
    assert "disp_llm dropped" in wrong[0]
    assert "is not an exported folder" in wrong[0]
    assert refused > 100


@pytest.mark.parametrize("how", BYTES)
def test_weights_that_become_a_gguf_file(folder, how):
    path = folder / "model.safetensors"
    path.write_bytes(BYTES[how](path.read_bytes()))
    assert names(outcome(lambda: read_tensors(path, CHANGED_FOLDER)), path)
