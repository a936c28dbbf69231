"""`export --no-measure`: the folder that a measured export writes, without its figures."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    SMALL,
    byte_tokenizer,
    must_refuse,
    must_run,
    run_process,
    tiny_model,
)
from safetensors.torch import load_file, save_file

import disp_llm
from disp_llm.config.checks import check_settings
from disp_llm.config.commands import ExportConfig
from disp_llm.config.errors import InputError
from disp_llm.config.parts import BudgetConfig
from disp_llm.models import checkpoint
from disp_llm.runs.sums import read_sums

RUN = ("measured", "perplexity_masked", "logit_errors", "sample")
"""Figures that a model must run for."""


@pytest.fixture
def own_run(small_run, tmp_path) -> Path:
    """A copy of the finished run, to be changed."""
    folder = tmp_path / "copy"
    shutil.copytree(small_run[0], folder)
    return folder


def export(run: Path, *more: object) -> dict[str, Any]:
    done = must_run("export", run, "--keep", 0.65, "--json", *more)
    (entry,) = json.loads(done.stdout)["models"]
    return entry


def test_the_same_folder_without_what_must_run(own_run, monkeypatch):
    measured = export(own_run)
    folder = own_run / "keep-0.65"
    sums = read_sums(folder)
    shutil.rmtree(folder)

    def refuse(*given: Any, **more: Any) -> None:
        raise AssertionError("the original is loaded")

    with monkeypatch.context() as patch:
        patch.setattr("disp_llm.models.loading.require_finite", refuse)
        entry = export(own_run, "--no-measure")
    again = read_sums(folder)
    told = ("README.md", "card.json")
    assert {k: v for k, v in again.items() if k not in told} == {
        k: v for k, v in sums.items() if k not in told
    }
    assert set(RUN) <= set(measured)
    assert not set(RUN) & set(entry)
    del entry["provenance"]  # another command, a later time
    assert entry.items() <= measured.items()
    must_run("verify", own_run)


def test_what_is_not_known_is_said_in_words(own_run, text_file, tmp_path):
    done = must_run("export", own_run, "--keep", 0.65, "--no-measure")
    assert "not measured" in done.stdout
    card = (own_run / "keep-0.65" / "README.md").read_text()
    assert "| not measured | |" in card
    assert "exported without running it" in card
    assert "model-index" not in card
    assert "<td>not measured</td>" in (own_run / "report.html").read_text()
    must_run("report", own_run)
    must_run("convert", own_run / "keep-0.65", "--to", "folder", "--output-dir", tmp_path / "saved")
    done = must_run(
        "recover", own_run / "keep-0.65", "--text", text_file, "--tokens", 256, "--length", 32,
        "--batch", 2, "--context", 32, "--windows", 2, "--dtype", "float32", "--device", "cpu",
        "--output-dir", tmp_path / "recovered",
    )  # fmt: skip
    card = (tmp_path / "recovered" / "model" / "README.md").read_text()
    assert "not measured" not in card
    assert "exported without running it" in card


def test_sizes_come_in_the_order_in_which_they_are_asked_for(own_run):
    result = disp_llm.export(own_run, keep=[0.65, 0.8], no_measure=True)
    assert [size.size for size in result.sizes] == ["0.65", "0.8"]
    assert result.size().size == "0.65"


def test_it_is_measured_later(own_run):
    before = export(own_run, "--no-measure")
    assert export(own_run, "--no-measure") == before
    stamp = (own_run / "keep-0.65" / "model.safetensors").read_bytes()
    after = export(own_run)
    assert set(RUN) <= set(after)
    assert (own_run / "keep-0.65" / "model.safetensors").read_bytes() == stamp
    assert export(own_run, "--no-measure") == after  # what is known stays known
    must_run("verify", own_run)


def test_no_text_is_needed(own_run, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr("disp_llm.data.sources.read_sources", lambda *given: pytest.fail("read"))
    config = ExportConfig(own_run, keep=(0.65,), no_measure=True, device="cpu")
    result = disp_llm.export(config, progress=lambda *given: None)
    assert result.size(0.65).measured is None
    assert result.model(0.65).num_parameters() == result.size(0.65).parameters


def test_an_original_that_cannot_be_read_by_tensor_is_loaded(own_run, monkeypatch):
    sums = export(own_run, "--no-measure") and read_sums(own_run / "keep-0.65")
    shutil.rmtree(own_run / "keep-0.65")
    monkeypatch.setattr(checkpoint, "checkpoint_of", lambda loaded: None)
    done = must_run("export", own_run, "--keep", 0.65, "--no-measure")
    assert "is loaded as a whole" in done.stderr
    found = read_sums(own_run / "keep-0.65")
    for name in ("card.json", "README.md"):  # tell the command
        assert found.pop(name)
        sums.pop(name)
    assert found == sums


def test_time_is_not_met_without_measuring(own_run):
    budget = BudgetConfig(budget="latency", fit=(0.8,))
    with pytest.raises(InputError, match="cannot be met without measuring"):
        check_settings(ExportConfig(own_run, budget=budget, no_measure=True))


def remove(file: Path) -> None:
    file.unlink()


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def not_finite(file: Path) -> None:
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})


def lacks_a_tensor(file: Path) -> None:
    weights = load_file(file)
    weights.pop(min(weights))
    save_file(weights, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def sharded(text_file, tmp_path_factory) -> tuple[Path, Path]:
    """A run of a model in several files, and that model."""
    folder = tmp_path_factory.mktemp("sharded")
    tiny_model("llama").save_pretrained(folder / "model", max_shard_size="60KB")
    byte_tokenizer().save_pretrained(folder / "model")
    must_run(
        "prune", folder / "model", "--keep", 0.5, "--text", text_file, "--method", "magnitude",
        "--output-dir", folder / "run", *SMALL,
    )  # fmt: skip
    return folder / "run", folder / "model"


@pytest.mark.parametrize("damage", [remove, cut_short, not_finite, lacks_a_tensor])
def test_a_damaged_file_is_one_line_and_leaves_nothing(damage, sharded):
    """Also where it is to be used all the same."""
    run, source = sharded
    file = sorted(source.glob("*.safetensors"))[1]
    whole, before = file.read_bytes(), sorted(path.name for path in run.iterdir())
    damage(file)
    for more in ((), ("--anyway",)):
        done = must_refuse("export", run, "--keep", 0.65, "--no-measure", *more)
        assert "Traceback" not in done.stderr
        assert str(source) in done.stderr or "is not what" in done.stderr
        assert sorted(path.name for path in run.iterdir()) == before
    file.write_bytes(whole)
    assert export(run, "--no-measure")["keep"] <= 0.65
    shutil.rmtree(run / "keep-0.65")


def test_a_full_disk_leaves_nothing(own_run):
    """A limit on the size of files stands for it."""
    limit = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))"
    )
    before = sorted(path.name for path in own_run.iterdir())
    done = run_process("export", own_run, "--keep", 0.65, "--no-measure", before=limit)
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr
    assert sorted(path.name for path in own_run.iterdir()) == before
    assert export(own_run, "--no-measure")["keep"] <= 0.65


def test_a_share_of_all_bytes_is_met_where_it_is_measured(own_run):
    original = json.loads((own_run / "result.json").read_text())["original"]["parameters"]
    done = must_run("export", own_run, "--fit", 0.8, "--json")
    (made,) = json.loads(done.stdout)["models"]
    assert 0.7 * original < made["parameters"] <= 0.8 * original
