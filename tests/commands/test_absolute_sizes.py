"""`--fit 6GB`, `80ms`, `700M`: what is written takes no more, and files say what was asked."""

import json
import shutil
import tomllib

import pytest
from conftest import SMALL, must_run, run_command
from test_prune import assert_one_line
from transformers import AutoModelForCausalLM

import disp_llm
from disp_lab.comparison.baseline_context import cache_bytes
from disp_llm.config.commands import ExportConfig
from disp_llm.config.parts import BudgetConfig
from disp_llm.evaluation import latency, timing
from disp_llm.evaluation.timing import Pair

WORK = ("--workload-length", 64, "--workload-batch", 2)


def taken(folder) -> int:
    """Bytes of weights and of the cache of two sequences of 64 tokens; the indices of what is kept
    are on top."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    return 4 * model.num_parameters() + 2 * cache_bytes(model, 64)


@pytest.fixture(scope="module")
def asked(llama_folder) -> str:
    """Two thirds of what the tiny Llama takes."""
    return f"{taken(llama_folder) * 2e-6 / 3:.4f}MB"


@pytest.fixture(scope="module")
def fitted(llama_folder, text_file, tmp_path_factory, asked):
    """A run that fits into so many megabytes, as the command made it."""
    folder = tmp_path_factory.mktemp("fitted") / "run"
    done = must_run(*command(llama_folder, text_file, folder, asked))
    return folder, json.loads(done.stdout)


def command(model, text, folder, *targets) -> list[object]:
    """`prune` with a memory budget."""
    return [
        "prune", model, "--budget", "memory", "--fit", *targets, *WORK,
        "--text", text, "--output-dir", folder, "--json", *SMALL,
    ]  # fmt: skip


def test_memory_is_no_more_than_was_asked_for(fitted, asked, llama_folder):
    folder, result = fitted
    limit = 1e6 * float(asked.removesuffix("MB"))
    (made,) = result["models"]
    assert 0.9 * limit < taken(folder / made["size"]) <= limit
    assert made["size"] == f"memory-64x2-{float(asked[:-2]):g}MB"
    assert made["asked"] == made["size"].removeprefix("memory-64x2-")
    assert made["share_asked"] == pytest.approx(limit / taken(llama_folder), rel=1e-12)
    assert made["share_of_budget"] <= made["share_asked"]
    assert tomllib.loads((folder / "config.toml").read_text())["budget"]["fit"] == [asked]
    assert f"for {made['asked']} at most" in (folder / made["size"] / "README.md").read_text()
    must_run("verify", folder)


def test_a_run_with_an_absolute_goes_on(fitted, asked, llama_folder, text_file, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(fitted[0], folder)
    size = fitted[1]["models"][0]["size"]
    shutil.rmtree(folder / size)
    must_run(*command(llama_folder, text_file, folder, asked), "--resume")
    stored = f"{size}/model.safetensors"
    assert (folder / stored).read_bytes() == (fitted[0] / stored).read_bytes()
    other = run_command("prune", llama_folder, "--output-dir", folder, "--fit", 0.5, "--resume")
    assert_one_line(other, "budget.fit", asked)


def test_export_to_absolutes_of_other_budgets(small_run, tmp_path, llama_folder):
    """The same as the share that it means, and none is made twice."""
    folder = tmp_path / "run"
    shutil.copytree(small_run[0], folder)
    dense = AutoModelForCausalLM.from_pretrained(llama_folder).num_parameters()
    parameters = f"{0.7e-6 * dense:.4f}M"
    done = must_run("export", folder, "--budget", "total", "--fit", parameters, "--json")
    (made,) = json.loads(done.stdout)["models"]
    assert made["parameters"] <= 1e6 * float(parameters[:-1])
    assert made["share_of_budget"] == made["keep_total"] <= made["share_asked"]
    again = run_command("export", folder, "--budget", "total", "--fit", parameters, "--json")
    assert json.loads(again.stdout)["models"] == [made]
    share = run_command(
        "export", folder, "--budget", "total", "--fit", made["share_asked"], "--json"
    )
    (same,) = json.loads(share.stdout)["models"]
    assert (same["parameters"], same.get("asked")) == (made["parameters"], None)
    limit = f"{0.7e-6 * 4 * dense:.4f}MB"
    config = ExportConfig(folder, budget=BudgetConfig("bytes", (limit,)), no_measure=True)
    result = disp_llm.export(config, progress=lambda *given: None)
    assert 4 * result.size(limit).parameters <= 1e6 * float(limit[:-2])
    assert result.model(limit).num_parameters() == result.size(limit).parameters
    with pytest.raises(disp_llm.InputError, match=r"0\.1MB is not among"):
        result.size("0.1MB")


@pytest.mark.parametrize(
    ("budget", "target", "said"),
    [
        ("memory", "80ms", "--fit: 80ms is in seconds, and memory counts bytes; give a number"),
        ("memory", "1GB", "the original fits in 1GB as it is, with 0.0002"),
        ("memory", "0.001MB", "--fit: 0.001MB is less than the smallest model, 0."),
        ("bytes", "0.01MB", "ask for 0.1024MB or more"),
        ("total", "0.001M", "--fit: 0.001M is less than the smallest model, 0."),
        ("total", "1B", "the original fits in 1B as it is, with "),
        ("flops", "1B", "--fit: 1B is in parameters, and flops takes shares alone"),
        ("memory", "6", "--fit: 6 is not a share; give a number in (0, 1], or bytes such as"),
        ("memory", "much", "--fit: 'much' is neither a share nor a number with a unit"),
    ],
)
def test_what_cannot_be_had_is_one_line(budget, target, said, llama_folder, text_file, tmp_path):
    flags = command(llama_folder, text_file, tmp_path / "run", target)
    flags[flags.index("memory")] = budget
    if budget != "memory":  # which alone of these asks for what work it is
        at = flags.index(WORK[0])
        del flags[at : at + len(WORK)]
    done = run_command(*flags)
    assert_one_line(done, said)
    assert not (tmp_path / "run").exists()


def test_the_smallest_that_is_named_can_be_had(llama_folder, text_file, tmp_path):
    done = run_command(*command(llama_folder, text_file, tmp_path / "run", "0.001MB"))
    least = done.stderr.rpartition("ask for ")[2].partition(" or more")[0]
    done = must_run(*command(llama_folder, text_file, tmp_path / "run", least))
    assert taken(next((tmp_path / "run").glob("memory-*"))) <= 1e6 * float(least.removesuffix("MB"))


def test_prune_to_milliseconds(llama_folder, text_file, tmp_path, monkeypatch):
    """On a machine whose time is counted: the original takes 200 ms."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    speed = [200.0]

    def counted(dense, compact, workload, rounds, *_) -> Pair:
        sizes = [sum(p.numel() for p in model.parameters()) for model in (dense, compact)]
        return Pair([1e-3 * speed[0]], [1e-3 * speed[0] * sizes[1] / sizes[0]])

    monkeypatch.setattr(timing.Stopwatch, "paired", staticmethod(counted))
    flags = ("--budget", "latency", "--workload-length", 100)
    done = must_run(
        "prune", llama_folder, *flags, "--fit", "160ms", "--text", text_file,
        "--output-dir", tmp_path / "run", "--json", *SMALL,
    )  # fmt: skip
    (made,) = json.loads(done.stdout)["models"]
    assert made["size"] == "latency-prefill-100-160ms"
    assert (made["asked"], made["share_asked"]) == ("160ms", pytest.approx(0.8))
    assert made["latency"]["measured_ms"] == pytest.approx(160, rel=latency.TOLERANCE)
    assert "asked for" not in done.stderr
    speed[0] = 300.0  # the machine has become slower since its costs were measured
    slower = must_run("export", tmp_path / "run", *flags, "--fit", "0.15s", "--json")
    (made,) = json.loads(slower.stdout)["models"]
    assert made["latency"]["measured_share"] == pytest.approx(0.75, rel=latency.TOLERANCE)
    for target, said in (
        ("1s", "fits in 1s as it is, with 0.2s; ask for less, or take"),
        ("1ms", "than the smallest model, "),
    ):
        done = run_command("export", tmp_path / "run", *flags, "--fit", target)
        assert_one_line(done, said)
