"""The main job as a user runs it: run folder, figures, other sizes, kill and resume, careless
use."""

import contextlib
import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib

import pytest
import together
import torch
import transformers
from conftest import (
    SMALL,
    byte_tokenizer,
    kept_in,
    must_refuse,
    must_run,
    run_command,
    run_process,
    tiny_prunable,
)
from safetensors.torch import load_file

from disp_llm.commands import planning
from disp_llm.config.names import SITES
from disp_llm.config.schema import as_type
from disp_llm.masks.layout import STREAM_SITES
from disp_llm.reporting.run_tables import show_run
from disp_llm.runs.folder import Run, clock
from disp_llm.runs.ownership import MARK, mark
from disp_llm.runs.results import SizeResult, dropped_said


@pytest.fixture
def own_run(small_run, tmp_path):
    """A copy of the finished run, to be changed."""
    folder = tmp_path / "copy"
    shutil.copytree(small_run[0], folder)
    return folder


def test_run_folder_is_complete(small_run, llama_folder):
    folder, printed = small_run
    result = Run(folder).result()
    assert printed == result
    assert result["status"] == "done"
    assert {"versions", "hardware", "seed", "command", "seconds", "source"} <= set(result)
    assert result["tokens_seen"] == 6 * 32 + 4 * 32
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 6
    config = tomllib.loads((folder / "config.toml").read_text())
    assert config["model"] == str(llama_folder)
    assert config["learn"]["steps"] == 6
    assert config["learn"]["estimator"] == "projected"  # resolved, not only what was given


def test_figures_are_those_of_the_folder(small_run, text_file):
    folder, result = small_run
    for entry, name in zip(result["models"], ("keep-0.5", "keep-0.8"), strict=True):
        assert entry["folder"] == str(folder / name)
        assert entry["keep"] <= entry["share_asked"]
        largest = 3 * 32 / result["original"]["block_parameters"]  # block parameters of one mlp_mid
        assert entry["keep"] > entry["share_asked"] - largest
        assert entry["logit_errors"]["max_logit_error"] <= 1e-5
        assert entry["measured"]["perplexity"] == pytest.approx(
            entry["perplexity_masked"], rel=1e-5
        )
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / name)
        assert sum(p.numel() for p in model.parameters()) == entry["parameters"]
        size = sum(p.stat().st_size for p in (folder / name).glob("*.safetensors"))
        assert size == entry["bytes"]
        stored = sum(p.numel() for n, p in model.named_parameters() if n.endswith("_proj.weight"))
        assert entry["keep"] == stored / result["original"]["block_parameters"]
        assert entry["share_of_budget"] == entry["keep"] < entry["share_asked"]
        assert entry["keep_total"] == entry["parameters"] / result["original"]["parameters"]
    small, large = result["models"]
    assert small["measured"]["perplexity"] > large["measured"]["perplexity"] * 0.9
    assert "perplexity" in (folder / "keep-0.5" / "README.md").read_text()


def test_the_model_that_lost_most_is_proposed_for_recovery(small_run, capsys):
    """Where training what is left is worth it, and there only."""
    figures = copy.deepcopy(small_run[1])
    dense = figures["original"]["measured"]["perplexity"]
    for model, lost in zip(figures["models"], (1.2, 1.5), strict=True):
        model["measured"] |= {"perplexity": lost * dense, "window_losses": [], "window_tokens": []}
    show_run(figures)
    (proposed,) = [line for line in capsys.readouterr().out.splitlines() if "next " in line]
    assert f"disp-llm recover {figures['models'][1]['folder']}, with the same text" in proposed
    for model in figures["models"]:
        model["measured"]["perplexity"] = 1.05 * dense
    show_run(figures)
    assert "recover" not in capsys.readouterr().out


def test_selection_is_the_hand_over(small_run):
    folder, _ = small_run
    selection, masks = load_file(folder / "selection.safetensors"), kept_in(folder)
    weights = load_file(folder / "keep-0.5" / "model.safetensors")
    assert set(selection) == {
        f"{prefix}.layers.{i}.{site}"
        for prefix in ("kept.0.5", "kept.0.8", "logits", "scales")
        for i in range(3)
        for site in SITES
    } | {f"adapters.{n}.{part}" for n in range(3 * 7) for part in ("down", "up")}
    assert torch.equal(masks["layers.1.attn_in"], weights["model.layers.1.self_attn.kept_in"])
    assert torch.equal(masks["layers.2.mlp_out"], weights["model.layers.2.mlp.kept_out"])


def test_whole_sites_have_no_selection(llama_folder, text_file, tmp_path):
    """Without `least_cut` every site of the residual stream is cut; with it, only where it pays."""
    selections = {}
    for least in ("0", "0.5"):
        folder = tmp_path / least
        must_run(
            "prune", llama_folder, "--recipe", "disp", "--text", text_file, "--keep", 0.6,
            "--output-dir", folder, *SMALL, "--least-cut", least,
        )  # fmt: skip
        masks = kept_in(folder, "0.6")
        weights = load_file(folder / "keep-0.6" / "model.safetensors")
        selections[least] = sum(name.endswith(("kept_in", "kept_out")) for name in weights)
        streams = [f"layers.{i}.{site}" for i in range(3) for site in STREAM_SITES]
        assert selections[least] == sum(len(masks[name]) < 32 for name in streams)
    assert selections["0.5"] < selections["0"]


def test_export_makes_another_size_without_learning(own_run, text_file):
    folder = own_run
    done = must_run("export", folder, "--keep", 0.65, "--json")
    result = json.loads(done.stdout)
    assert [entry["share_asked"] for entry in result["models"]] == [0.65]
    assert 0.6 < result["models"][0]["keep"] <= 0.65
    assert (folder / "keep-0.65" / "config.json").exists()
    assert len(json.loads((folder / "result.json").read_text())["models"]) == 3
    assert "learning" not in done.stderr
    must_run("eval", folder / "keep-0.65", "--text", text_file, "--context", 32, "--json")
    mixture = must_refuse("eval", folder / "keep-0.65", "--text", folder / "config.toml")
    assert "config.toml is only learned from" in mixture.stderr
    for name in ("self", "speeches"):
        done = must_refuse("eval", folder / "keep-0.65", "--text", name)
        assert f"--text: {name} is only learned from; name files" in done.stderr


def test_eval_agrees_with_prune(small_run, text_file, tmp_path):
    """Held-out text written to a file of its own gives the figure that `prune` reported."""
    folder, result = small_run
    text = text_file.read_text()
    held_out = tmp_path / "held-out.txt"
    held_out.write_text(text[int(len(text) * 0.9) :])
    done = run_command(
        "eval", folder / "keep-0.5", "--text", held_out, "--context", 32, "--windows", 4,
        "--dtype", "float32", "--json",
    )  # fmt: skip
    figures = json.loads(done.stdout)
    assert figures["perplexity"] == pytest.approx(
        result["models"][0]["measured"]["perplexity"], rel=1e-5
    )
    assert {"tokens", "window", "stride", "parameters", "block_parameters"} <= set(figures)


def test_keep_one_is_bitwise_the_original(llama_folder, text_file, tmp_path):
    done = must_run(
        "prune", llama_folder, "--keep", 1.0, "--text", text_file, "--method", "magnitude",
        "--output-dir", tmp_path / "run", "--json", *SMALL,
    )  # fmt: skip
    (entry,) = json.loads(done.stdout)["models"]
    assert entry["logit_errors"]["max_logit_error"] == 0
    assert entry["keep"] == 1
    tokens = torch.randint(4, 200, (2, 16))
    exported, original = (
        transformers.AutoModelForCausalLM.from_pretrained(path)
        for path in (tmp_path / "run" / "keep-1", llama_folder)
    )
    assert torch.equal(exported(tokens).logits, original(tokens).logits)


@pytest.mark.parametrize("method", ["fisher", "magnitude", "random"])
def test_every_method_makes_a_model(method, llama_folder, text_file, tmp_path):
    must_run(
        "prune", llama_folder, "--method", method, "--text", text_file, "--align", 8,
        "--output-dir", tmp_path / "run", "--json", *SMALL,
    )  # fmt: skip
    config = json.loads((tmp_path / "run" / "keep-0.5" / "config.json").read_text())
    widths = config["disp_llm"]["widths"]
    assert {*widths.pop("heads")} <= {1, 2}
    assert all(width % 8 == 0 for site in widths.values() for width in site)


STEPS = 20
LONG = [*SMALL[2:], "--steps", str(STEPS), "--compile", "no"]

AT_STEP = """
import os
from disp_llm.runs.metrics import MetricsLog
from disp_llm.training import loop

loop.CHECKPOINT_EVERY = 7
append = MetricsLog.append

def append_and_signal(log, figures):
    append(log, figures)
    if figures["step"] == {step}:
        os.kill(os.getpid(), {number})

MetricsLog.append = append_and_signal
"""
"""A process that writes a checkpoint every seventh step, and gets a signal once it has logged one.
"""


def long_run(folder, llama_folder, text_file) -> list[object]:
    return ["prune", llama_folder, "--text", text_file, "--output-dir", folder, *LONG]


def signalled_run(step: int, number: int, *inputs) -> subprocess.CompletedProcess[str]:
    before = AT_STEP.format(step=step, number=int(number))
    return run_process(*long_run(*inputs), before=before)


def resume(*inputs) -> subprocess.CompletedProcess[str]:
    return run_command(*long_run(*inputs), "--resume")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, llama_folder, text_file):
    folder = tmp_path_factory.mktemp("whole") / "run"
    must_run(*long_run(folder, llama_folder, text_file))
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory, llama_folder, text_file):
    """A run that was killed with two checkpoints written."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    done = signalled_run(17, signal.SIGKILL, folder, llama_folder, text_file)
    assert done.returncode == -signal.SIGKILL
    return folder


@pytest.mark.parametrize("step", [3, 7, 17])
def test_killed_and_resumed_equals_uninterrupted(
    step, uninterrupted, killed, llama_folder, text_file, tmp_path
):
    """Killed before the first checkpoint, when it is due, and after the second."""
    folder = tmp_path / "run"
    if step == 17:
        shutil.copytree(killed, folder)
    else:
        done = signalled_run(step, signal.SIGKILL, folder, llama_folder, text_file)
        assert done.returncode == -signal.SIGKILL
    assert not (folder / "selection.safetensors").exists()
    done = resume(folder, llama_folder, text_file)
    assert done.returncode == 0, done.stderr
    ours, theirs = (load_file(f / "selection.safetensors") for f in (folder, uninterrupted))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    steps = [(line["step"], line["tokens"]) for line in lines]
    assert steps == [(i, 32 * i) for i in range(1, STEPS + 1)]  # no step twice, none missing
    assert Run(folder).result()["tokens_seen"] == STEPS * 32 + 4 * 32


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_says_how_to_go_on(number, llama_folder, text_file, tmp_path):
    folder = tmp_path / "run"
    done = signalled_run(10, number, folder, llama_folder, text_file)
    errors = done.stderr
    assert done.returncode == 130
    assert "--resume" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    newest = sorted((folder / "checkpoint").iterdir())[-1]
    done_steps = len((folder / "metrics.jsonl").read_text().splitlines())
    assert done_steps < STEPS
    assert newest.name == f"step-{done_steps:07d}.safetensors"
    assert resume(folder, llama_folder, text_file).returncode == 0


def test_damaged_checkpoint_is_one_line(killed, llama_folder, text_file, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    newest = sorted((folder / "checkpoint").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:200])
    done = resume(folder, llama_folder, text_file)
    assert_one_line(done, str(newest))
    newest.unlink()
    assert resume(folder, llama_folder, text_file).returncode == 0


def test_the_same_command_goes_on_whatever_its_flags_come_to(llama_folder, text_file, tmp_path):
    """Widths that the functions for experts can take."""
    command = [
        "prune", llama_folder, "--text", text_file, "--output-dir", tmp_path / "run", "--json",
        "--resume", "auto", *SMALL,
        "--for", "anywhere", "--align", "4",
    ]  # fmt: skip
    found = [run_command(*command) for _ in range(2)]
    assert [done.returncode for done in found] == [0, 0], found[1].stderr
    first, again = (json.loads(done.stdout) for done in found)
    assert first == again


def test_resume_with_other_settings_is_refused(small_run, llama_folder):
    folder, _ = small_run
    done = run_command("prune", llama_folder, "--output-dir", folder, "--resume", "--steps", 99)
    assert_one_line(done, "learn.steps")


def test_a_folder_that_is_taken_can_be_resumed_only_where_it_is_a_run(own_run, llama_folder):
    for folder, hint in (
        (own_run, "add --resume to go on with it, or name another folder"),
        (llama_folder, "name another folder"),
    ):
        done = must_refuse("prune", llama_folder, "--output-dir", folder)
        said = f"disp-llm: --output-dir: {folder} exists and is not empty; {hint}"
        assert done.stderr.splitlines() == [said]


def test_resume_of_a_finished_run_changes_nothing(own_run, llama_folder):
    before = {path: path.stat().st_mtime_ns for path in own_run.rglob("*")}
    assert not list(own_run.rglob("step-*")), "a finished run needs no checkpoints"
    done = must_run("prune", llama_folder, "--output-dir", own_run, "--resume", "--json")
    run = Run(own_run)  # a copy
    assert json.loads(done.stdout) == run.located(run.result())
    assert {path: path.stat().st_mtime_ns for path in own_run.rglob("*")} == before


def assert_one_line(done: subprocess.CompletedProcess[str], *said: str) -> None:
    """Exit code 2 and one line on standard error that holds all of `said`."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("disp-llm: ")]
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    assert len(lines) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == lines[0]
    for word in said:
        assert word in lines[0], lines[0]


def test_scales_outlive_a_first_size_of_one(llama_folder, text_file, tmp_path):
    sizes = {}
    for name, keeps in (("whole first", (1.0, 0.5)), ("whole last", (0.5, 1.0))):
        run = tmp_path / name
        done = must_run(
            "prune", llama_folder, "--keep", *keeps, "--text", text_file, "--output-dir", run,
            *SMALL,
        )  # fmt: skip
        done = must_run("export", run, "--keep", 0.6, "--json")
        sizes[name] = json.loads(done.stdout)["models"][0]
        assert sizes[name]["scaled"]
    of_first, of_last = (size["measured"]["perplexity"] for size in sizes.values())
    assert of_first == of_last


def test_a_selection_for_one_size_is_exported_at_that_size_only(llama_folder, text_file, tmp_path):
    must_run(
        "prune", llama_folder, "--method", "wanda", "--keep", 0.7, "--text", text_file,
        "--output-dir", tmp_path / "run", *SMALL,
    )  # fmt: skip
    assert_one_line(run_command("export", tmp_path / "run", "--keep", 0.8), "one size at a time")
    must_run("export", tmp_path / "run", "--keep", 0.7)


def test_seconds_of_all_attempts_add_up(small_run, tmp_path):
    mark(tmp_path, "prune")
    run = Run(tmp_path)
    with clock(run, "seconds"):
        pass
    assert run.result() == {}  # nothing to add to before a run has begun
    run.update(**Run(small_run[0]).result() | {"seconds": 5.0})
    with contextlib.suppress(KeyboardInterrupt), clock(run, "seconds"):
        time.sleep(0.2)
        raise KeyboardInterrupt
    assert 5.2 <= run.result()["seconds"] < 6
    with clock(run, "seconds", active=False):
        time.sleep(0.2)
    assert run.result()["seconds"] < 6


def test_the_run_fixes_the_alignment(small_run):
    folder, _ = small_run
    config = tomllib.loads((folder / "config.toml").read_text())
    assert config["align"] == 1  # asked: 0, what is best here


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keep", "0"], "--keep"),
        (["--keep", "1.5"], "--keep"),
        (["--keep", "nan"], "--keep"),
        (["--keep", "half"], "--keep"),
        (["--keep", "0.5", "0.5"], "--keep"),
        (["--keep", "0.0001"], "--keep"),
        (["--keep", "0.3", "--sites", "mlp_mid"], "--sites"),
        (["--sites", "mlp_mit"], "mlp_mid"),
        (["--budget", "latency"], "--fit"),
        (["--budget", "flops", "--fit", "2"], "--fit"),
        (["--budget", "bytes", "--fit", "0.1"], "--fit"),
        (["--budget", "total", "--fit", "0.3"], "--fit: 0.3 is less than the smallest model"),
        (["--budget", "total", "--keep", "0.5"], "--fit"),
        (["--budget", "second", "--fit", "0.5"], "latency"),
        (["--budget", "total", "--fit", "0.8", "--keep=0.8"], "--keep: is of block parameters"),
        (["--steps", "3", "--minutes", "2"], "together with --minutes"),
        (["--recipe", "defalt"], "nearest: default"),
        (["--steps", "-1"], "--steps"),
        (["--stepz", "3"], "--steps"),
        (["--method", "magic"], "--method"),
        (["--context", "1"], "--context"),
        (["--device", "cuda:99"], "--device"),
        (["--text", "missing.txt"], "missing.txt"),
        (["--dataset", "x:y"], "--dataset"),
        (["--length", "99999"], "--length"),
        (["--calibration-length", "99999"], "--calibration-length"),
        (["--align", "64"], "--keep"),
        (["--context", "129", "--eval-text", "TEXT"], "--context"),
        (["--length", "129"], "128 positions"),
        (["--estimator", "reinmax"], "--penalty"),
        (["--beta2", "1"], "--beta2"),
        (["--method", "wanda", "--keep", "0.8", "0.5"], "--keep: the method wanda chooses for one"),
        (["--method", "wanda", "--budget", "bytes", "--fit", "0.9", "0.8"], "--fit: the method"),
        (["--method", "wanda", "--budget", "bytes", "--fit", "0.8"], "--budget"),
        (["--method", "sheared", "--sites", "mlp_mid"], "--sites"),
        (["--method", "ddp", "--keep", "0.8", "0.5"], "one size at a time"),
        (["--method", "grasprune", "--keep", "0.8", "0.5"], "one size at a time"),
        (["--method", "grasprune", "--budget", "bytes", "--fit", "0.8"], "--budget"),
    ],
)
def test_bad_flags_are_one_line_and_leave_nothing(
    arguments, said, llama_folder, text_file, tmp_path
):
    arguments = [text_file if argument == "TEXT" else argument for argument in arguments]
    text = [] if "--text" in arguments else ["--text", text_file]
    flags = [flag for flag in SMALL if flag not in ("--device", "cpu")]
    folder = tmp_path / "run"
    done = run_command("prune", llama_folder, "--output-dir", folder, *text, *flags, *arguments)
    assert_one_line(done, said)
    assert not folder.exists()


def test_errors_as_json(llama_folder):
    done = must_refuse("prune", llama_folder, "--keep", 3, "--json")
    assert set(json.loads(done.stdout)) == {"error", "field", "hint"}


def test_wrong_model_names(tmp_path, text_file):
    encoder = tmp_path / "encoder"
    transformers.BertConfig(num_hidden_layers=1).save_pretrained(encoder)
    empty = tmp_path / "empty"
    empty.mkdir()
    for model, said in [
        ("no/such-model-here", "no/such-model-here"),
        ("smollm2-125m", "nearest: smollm2-135m"),
        (str(empty), "cannot load"),
        (str(tmp_path), f"holds models, and is none; name one of them, such as {encoder}"),
        (str(tmp_path / "gone"), f"there is no {tmp_path / 'gone'}; name a model folder"),
        (str(encoder), "'bert' is not supported"),
        (str(text_file), "cannot load"),
    ]:
        for command in (["prune", model, "--output-dir", tmp_path / "run"], ["doctor", model]):
            assert_one_line(run_command(*command), "MODEL", said)
    assert not (tmp_path / "run").exists()


def test_pruning_a_pruned_model_is_refused(small_run, tmp_path):
    folder, _ = small_run
    done = run_command("prune", folder / "keep-0.5", "--output-dir", tmp_path / "run")
    assert_one_line(done, "pruned already")


def test_damaged_weights_are_one_line(llama_folder, tmp_path, text_file):
    copy = tmp_path / "model"
    transformers.AutoModelForCausalLM.from_pretrained(llama_folder).save_pretrained(copy)
    byte_tokenizer().save_pretrained(copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    done = run_command("prune", copy, "--text", text_file, "--output-dir", tmp_path / "run", *SMALL)
    assert_one_line(done, str(weights))


def test_output_dir_that_is_a_file(llama_folder, text_file, tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    for folder in (path, path / "inside"):
        done = run_command(
            "prune", llama_folder, "--text", text_file, "--output-dir", folder, *SMALL
        )
        assert_one_line(done, "--output-dir")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(llama_folder, text_file, tmp_path):
    tmp_path.chmod(0o500)
    done = run_command(
        "prune", llama_folder, "--text", text_file, "--output-dir", tmp_path / "run", *SMALL
    )
    tmp_path.chmod(0o700)
    assert_one_line(done, "cannot be written")


def test_full_disk_leaves_no_half_written_folder(llama_folder, text_file, tmp_path):
    """A limit on the size of files stands for a full disk: checkpoints fit, the model does not."""

    limit = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))"
    )
    folder = tmp_path / "run"
    command = ["prune", llama_folder, "--text", text_file, "--output-dir", folder, *SMALL]
    command += ["--adapter-rank", 0]  # whose checkpoints are larger than this model
    done = run_process(*command, before=limit)
    assert_one_line(done, "cannot write", "make room")
    assert not (folder / "keep-0.5").exists()
    assert [path.name for path in folder.glob(".*")] == [MARK]
    again = must_run(*command, "--resume")  # with room, what was learned is not learned again
    assert "learning" not in again.stderr


def by_torchrun(*arguments: object) -> str:
    """Standard output of two processes under torchrun (`accelerate launch` starts several on GPUs
    only)."""
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
            "-m", "disp_llm", *map(str, arguments),
        ],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_torchrun_does(*arguments: object) -> str:
    """Standard output of two fresh processes with the environment that torchrun gives to its own,
    whose three interpreters take fifteen seconds to start."""
    return "".join(one.stdout for one in together.run(together.COMMAND, *arguments))


@pytest.mark.parametrize(
    "start", [as_torchrun_does, pytest.param(by_torchrun, marks=pytest.mark.proof)]
)
def test_two_processes_learn_the_same_masks_everywhere(start, llama_folder, text_file, tmp_path):
    """Two processes on the CPU: different text, one set of masks, one folder."""
    folder = tmp_path / "run"
    printed = start(
        "prune", llama_folder, "--text", text_file, "--output-dir", folder, "--json", *SMALL
    )
    results = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    (result,) = [found for found in results if found]
    assert result["tokens_seen"] == 2 * 6 * 32 + 4 * 32
    assert result["models"][0]["logit_errors"]["max_logit_error"] <= 1e-5
    single = tmp_path / "single"
    run_command("prune", llama_folder, "--text", text_file, "--output-dir", single, *SMALL)
    both, alone = (
        load_file(f / "checkpoint" / "scores.safetensors")["fisher"] for f in (folder, single)
    )
    torch.testing.assert_close(both, alone, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("recipe", ["default", "paper", "paper-released-code"])
def test_only_the_asked_sites_are_cut(recipe, llama_folder, text_file, tmp_path):
    done = must_run(
        "prune", llama_folder, "--recipe", recipe, "--sites", "mlp_mid", "mlp_in", "--keep", 0.7,
        "--text", text_file, "--output-dir", tmp_path / "run", "--json", *SMALL,
    )  # fmt: skip
    config = json.loads((tmp_path / "run" / "keep-0.7" / "config.json").read_text())
    widths = config["disp_llm"]["widths"]
    for site, full in (("attn_in", 32), ("attn_out", 32), ("mlp_out", 32)):
        assert widths[site] == [full] * 3
    assert sum(widths["mlp_mid"]) < 3 * 48
    (model,) = json.loads(done.stdout)["models"]
    assert model["keep"] <= 0.7


@pytest.mark.parametrize("kind", ["flops", "bytes", "total"])
def test_other_budgets_by_flag(kind, llama_folder, small_run, tmp_path):
    shutil.copytree(small_run[0], tmp_path / "run")
    done = must_run("export", tmp_path / "run", "--budget", kind, "--fit", 0.7, "--json")
    (model,) = json.loads(done.stdout)["models"]
    assert model["size"] == f"{kind}-0.7"
    assert 0.68 < model["share_of_budget"] <= 0.7
    if kind == "total":
        assert model["share_of_budget"] == model["keep_total"]
    if kind in ("bytes", "total"):
        dense = transformers.AutoModelForCausalLM.from_pretrained(llama_folder).num_parameters()
        assert model["parameters"] <= 0.7 * dense


def test_heads_as_a_sixth_site(llama_folder, text_file, tmp_path):
    """Of two KV heads in each of three blocks some go; the cache shrinks and the card says so."""
    run = tmp_path / "run"
    sites = ("attn_in", "attn_out", "mlp_in", "mlp_mid", "mlp_out", "heads")
    done = must_run(
        "prune", llama_folder, "--text", text_file, "--keep", 0.1, "--sites", *sites,
        "--output-dir", run, "--json", *SMALL,
    )  # fmt: skip
    (made,) = json.loads(done.stdout)["models"]
    assert made["logit_errors"]["max_logit_error"] <= 1e-5
    masks = kept_in(run, "0.1")
    heads = [len(masks[f"layers.{i}.heads"]) for i in range(3)]
    assert made["kv_cache"] == pytest.approx(sum(heads) / 6)
    model = transformers.AutoModelForCausalLM.from_pretrained(run / "keep-0.1")
    assert model.config.disp_llm["widths"]["heads"] == heads
    cache = model(torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values
    assert [layer.keys.shape[1] for layer in cache.layers] == heads
    assert made["kv_cache"] < 1
    assert "vllm serve" in (run / "keep-0.1" / "README.md").read_text()


def test_whole_branches_as_sites(llama_folder, text_file, tmp_path):
    """Blocks lose attention or MLP; table, card, page and check know it, and training goes on."""
    run = tmp_path / "run"
    done = must_run(
        "prune", llama_folder, "--text", text_file, "--keep", 0.3, "--method", "magnitude",
        "--sites", "mlp_mid", "attention", "mlp", "--output-dir", run, *SMALL,
    )  # fmt: skip
    first = json.loads((run / "result.json").read_text())["models"][0]
    assert sum(first["dropped"].values()) > 0
    assert first["logit_errors"]["max_logit_error"] <= 1e-5
    masks = kept_in(run, "0.3")
    for name in ("attention", "mlp"):
        there = [len(masks[f"layers.{i}.{name}"]) for i in range(3)]
        assert first["dropped"][name] == 3 - sum(there)
        inside = {"attention": "attn_in", "mlp": "mlp_mid"}[name]
        assert [min(len(masks[f"layers.{i}.{inside}"]), 1) for i in range(3)] == there
    assert len(masks["layers.0.attention"]) == 1
    assert first["kv_cache"] == pytest.approx(1 - first["dropped"]["attention"] / 3)
    assert not first["heads_pruned"]
    said = dropped_said(as_type(first, SizeResult, field="result.json", hint=""))
    assert said in done.stdout
    assert said in (run / "report.html").read_text()
    card = (run / "keep-0.3" / "README.md").read_text()
    assert f"Blocks have lost {said}" in card
    assert ("vllm serve" in card) == (not first["dropped"]["attention"])
    must_run("verify", run)
    smaller = must_run("export", run, "--keep", 0.4, "--json")
    assert json.loads(smaller.stdout)["models"][0]["keep"] <= 0.4
    must_run(
        "recover", run / "keep-0.3", "--text", text_file, "--tokens", 128, "--length", 32,
        "--batch", 1, "--context", 32, "--windows", 4, "--output-dir", tmp_path / "recovered",
    )  # fmt: skip


def test_a_method_that_scores_no_whole_branches_says_so(llama_folder, text_file, tmp_path):
    done = must_refuse(
        "prune", llama_folder, "--text", text_file, "--method", "wanda", "--sites", "mlp_mid",
        "attention", "--output-dir", tmp_path / "run",
    )  # fmt: skip
    assert "--sites: the method wanda does not score whole branches" in done.stderr
    assert not (tmp_path / "run").exists()


def test_widths_are_multiples_of_32_where_the_model_is_wide_enough(monkeypatch):
    narrow = tiny_prunable("llama")
    assert planning.default_align(narrow) == 1
    monkeypatch.setattr(planning, "WIDE", narrow.layout.blocks[0].hidden)
    assert planning.default_align(narrow) == 32
