"""The library: what the commands do, from Python, with models and text that lie in memory."""

import json
import shutil
import subprocess
import sys

import datasets
import fresh
import pytest
import torch
import transformers
from conftest import (
    SETTINGS,
    SMALL,
    byte_tokenizer,
    must_refuse,
    must_run,
    tiny_model,
)
from small import settings_of

import disp_lab
import disp_llm
from disp_llm.commands.api import called_with
from disp_llm.commands.report import PruneResult, RecoverResult
from disp_llm.config.commands import EvalConfig, ExportConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recipes import with_settings
from disp_llm.data.in_memory import read_input
from disp_llm.data.sources import GivenText
from disp_llm.models.source import fingerprint_of


def silent(*progress) -> None:
    """Progress that nobody sees."""


@pytest.fixture(scope="module")
def in_memory(text_file):
    """A run of a model in memory at two sizes, in a folder that nobody named."""
    model, tokenizer = tiny_model("llama").train(), byte_tokenizer()
    model.lm_head.requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    text = [text_file.read_text()]
    result = disp_llm.prune(
        model, tokenizer, text=text, keep=[0.8, 0.5], recipe="disp", progress=silent, **SETTINGS
    )
    return model, before, result


def test_a_run_by_function_and_by_command_give_equal_bytes(
    small_run, llama_folder, text_file, tmp_path
):
    result = disp_llm.prune(
        str(llama_folder), text=text_file, keep=[0.5, 0.8], output_dir=tmp_path / "run",
        recipe="disp", progress=silent, **SETTINGS,
    )  # fmt: skip
    for name in ("selection.safetensors", "keep-0.5/model.safetensors",
                 "keep-0.8/model.safetensors", "keep-0.5/config.json"):  # fmt: skip
        assert (tmp_path / "run" / name).read_bytes() == (small_run[0] / name).read_bytes(), name
    assert [size.share_asked for size in result.sizes] == [0.5, 0.8]
    assert (
        result.figures["models"][0]["measured"]["perplexity"]
        == small_run[1]["models"][0]["measured"]["perplexity"]
    )
    configs = [(folder / "config.toml").read_text() for folder in (tmp_path / "run", small_run[0])]
    assert configs[0].replace(str(tmp_path / "run"), "X") == configs[1].replace(
        str(small_run[0]), "X"
    )


def test_the_model_in_memory_is_left_as_it_was(in_memory):
    model, before, _ = in_memory
    assert model.training
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["lm_head.weight"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())


def test_it_learns_what_the_same_model_on_disk_learns(in_memory, small_run):
    """The tiny Llama on disk is the same model; sizes are asked in the other order."""
    _, _, result = in_memory
    wanted = {entry["size"]: entry["measured"]["perplexity"] for entry in small_run[1]["models"]}
    assert {s.size: s.measured.perplexity for s in result.sizes} == wanted


def test_models_masks_and_report_of_a_result(in_memory):
    _, _, result = in_memory
    small = result.model(0.5)
    assert isinstance(small, transformers.PreTrainedModel)
    assert all(parameter.requires_grad for parameter in small.parameters())
    assert sum(p.numel() for p in small.parameters()) == result.size(0.5).parameters
    masks = result.masks(0.5)
    assert torch.equal(masks["layers.1.attn_in"], small.model.layers[1].self_attn.kept_in)
    assert len(result.masks(0.8)["layers.1.attn_in"]) >= len(masks["layers.1.attn_in"])
    assert "<html" in result.report().read_text()
    with pytest.raises(disp_llm.InputError, match=r"0\.3 is not among"):
        result.model(0.3)
    loss = small(torch.arange(8)[None], labels=torch.arange(8)[None]).loss
    loss.backward()
    assert small.model.layers[0].mlp.up_proj.weight.grad is not None


def test_recover_and_evaluate_in_memory(in_memory, text_file):
    model, _, result = in_memory
    tokenizer, text = byte_tokenizer(), text_file.read_text()
    small = result.model(0.5)
    measured = {"context": 32, "windows": 8, "progress": silent}
    before = disp_llm.eval(small, tokenizer, text=[text[-4000:]], **measured)
    better = disp_llm.recover(
        small, tokenizer, text=[text[:-4000]], eval_text=[text[-4000:]], teacher=model,
        tokens=1920, length=32, learning_rate=3e-3, **measured,
    )  # fmt: skip
    after = disp_llm.eval(better, tokenizer, text=[text[-4000:]], dtype="float32", **measured)
    assert after["perplexity"] < before["perplexity"]
    assert better.figures["before"]["measured"]["perplexity"] == pytest.approx(before["perplexity"])
    assert isinstance(better.model, transformers.PreTrainedModel)


def test_every_kind_of_text_gives_the_same_tokens(text_file):
    text = text_file.read_text()[:3000]
    tokenizer = byte_tokenizer()
    rows = datasets.Dataset.from_dict({"text": [text]})
    ids = tokenizer(text)["input_ids"]
    kinds = [
        text, [text], rows, rows.to_iterable_dataset(), ids, [ids], torch.tensor(ids),
        (row for row in [text]),
    ]  # fmt: skip
    figures = [
        disp_llm.eval(
            tiny_model("llama"), tokenizer, text=kind, context=32, windows=4, progress=silent
        )
        for kind in kinds
    ]
    assert len({figure["perplexity"] for figure in figures}) == 1
    assert all("in memory" in figure["text"] for figure in figures)
    assert read_input(str(text_file)) == read_input(text_file) == (text_file,)
    assert isinstance(read_input("two words"), GivenText)


def test_rows_in_memory_hold_their_text_in_the_column_that_is_named(text_file):
    texts = text_file.read_text().splitlines(keepends=True)
    rows = datasets.Dataset.from_dict({"body": texts})
    model, flags = tiny_model("llama"), {"context": 32, "windows": 4, "progress": silent}
    found = [
        disp_llm.eval(model, byte_tokenizer(), text=text, **named, **flags)
        for text, named in ((texts, {}), (rows, {"text_field": "body"}))
    ]
    assert found[0] == found[1]
    run = disp_llm.prune(
        model, byte_tokenizer(), text=rows, eval_text=rows, text_field="body",
        method="magnitude", progress=silent, **settings_of("magnitude"),
    )  # fmt: skip
    assert run.figures["source"]["eval_text_sha256"] == found[0]["text_sha256"]
    with pytest.raises(disp_llm.InputError, match="no column 'title' in row 1, but 'body'"):
        disp_llm.eval(model, byte_tokenizer(), text=rows, text_field="title", **flags)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("missing.txt", "no such file"),
        ([1.5, "a"], "no text"),
        ([], "empty"),
        ([{"body": "x"}], "column"),
        (3, "cannot be read from int"),
    ],
)
def test_what_is_no_text_is_refused(text, said):
    with pytest.raises(disp_llm.InputError, match=said):
        disp_llm.eval(tiny_model("llama"), byte_tokenizer(), text=text, progress=silent)


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("text", ["two words\n", "and more\n"]),
        ("text", [1, 2, 3]),
        ("eval_text", "a text of words"),
        ("examples", [{"prompt": "a", "answer": "b"}]),
    ],
)
def test_a_comparison_reads_files_alone(field, given, llama_folder, text_file, tmp_path):
    asked = {"text": text_file} | {field: given}
    with pytest.raises(disp_llm.InputError) as raised:
        disp_lab.compare(llama_folder, output_dir=tmp_path / "table", progress=silent, **asked)
    assert str(raised.value) == f"{field}: lies in memory; write it to a file, and name that"
    assert not (tmp_path / "table").exists()


def test_careless_calls_name_the_setting():
    model = tiny_model("llama")
    with pytest.raises(disp_llm.InputError, match="tokenizer"):
        disp_llm.prune(model, text="some text")
    with pytest.raises(disp_llm.InputError, match="nearest: steps"):
        disp_llm.prune(model, byte_tokenizer(), text="some text", stepps=3)
    said = "^keep: out of range; give a number of at most 1$"
    with pytest.raises(disp_llm.InputError, match=said):
        disp_llm.prune(model, byte_tokenizer(), text="some text", keep=1.5)


def test_options_change_the_settings_that_are_given_at_once(text_file, tmp_path):
    model, tokenizer = tiny_model("llama"), byte_tokenizer()
    settings = with_settings(PruneConfig("tiny"), SETTINGS | {"keep": 0.8})
    result = disp_llm.prune(
        model, tokenizer, text=[text_file.read_text()], config=settings, keep=0.5,
        output_dir=tmp_path / "run", progress=silent,
    )  # fmt: skip
    assert [size.share_asked for size in result.sizes] == [0.5]
    assert "in memory" in result.figures["source"]["text"]
    assert result.folder == tmp_path / "run"
    assert result.figures["tokens_seen"] == 10 * 32
    call = called_with(
        PruneConfig, {"model": "x"}, None, PruneConfig(""), {"recipe": "paper", "steps": 9}
    )
    assert (call.config.learn.estimator, call.config.learn.steps) == ("reinmax", 9)


def test_progress_reaches_the_callback_and_a_named_folder_resumes(text_file, tmp_path):
    seen = []
    model, tokenizer = tiny_model("llama"), byte_tokenizer()

    def stop_after_four(stage, done, total, figures) -> None:
        seen.append((stage, done, total))

    def asked() -> bool:
        return ("learning masks", 3, 6) in seen

    call = {
        "text": [text_file.read_text()],
        "keep": 0.5,
        "output_dir": tmp_path / "run",
        **SETTINGS,
    }
    with pytest.raises(KeyboardInterrupt):
        disp_llm.prune(model, tokenizer, progress=stop_after_four, stop_requested=asked, **call)
    assert ("learning masks", 4, 6) in seen
    assert ("learning masks", 5, 6) not in seen
    told = tmp_path / "run" / "result.json"
    assert json.loads(told.read_text())["status"] == "stopped"
    resumed = disp_llm.prune(model, tokenizer, progress=silent, resume=True, **call)
    assert json.loads(told.read_text())["status"] == "done"
    whole = disp_llm.prune(
        model, tokenizer, progress=silent, **call | {"output_dir": tmp_path / "b"}
    )
    assert all(torch.equal(resumed.masks()[k], v) for k, v in whole.masks().items())


def test_steps_are_logged_to_a_tracker(llama_folder, text_file, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    must_run(
        "prune", llama_folder, "--text", text_file, "--output-dir", tmp_path / "run",
        "--track", "tensorboard", *SMALL,
    )  # fmt: skip
    run = tmp_path / "run"
    (folder,) = {path.parent for path in (run / "disp-llm").glob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses)
    (model,) = json.loads((run / "result.json").read_text())["models"]
    measured = {"bytes": model["bytes"], "perplexity": model["measured"]["perplexity"]}
    for name, value in measured.items():
        (event,) = events.Scalars(f"keep-0.5/{name}")
        assert (event.step, event.value) == (6, pytest.approx(value))
    (settings,) = (run / "disp-llm").rglob("hparams.yml")
    assert "learn.steps: 6" in settings.read_text()


def test_a_tracker_that_is_not_installed_is_refused_first(llama_folder, text_file, tmp_path):
    done = must_refuse(
        "prune", llama_folder, "--text", text_file, "--output-dir", tmp_path / "run",
        "--track", "wandb", *SMALL,
    )  # fmt: skip
    assert "--track: wandb is not installed; run `pip install wandb`" in done.stderr
    assert not (tmp_path / "run").exists()


def test_importing_the_package_imports_nothing_heavy():
    script = (
        "import sys, disp_llm\n"
        "heavy = {'torch', 'transformers', 'numpy', 'accelerate'} & set(sys.modules)\n"
        "print(heavy or 'none', 'prune' in dir(disp_llm))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["none", "True"]


def test_a_model_that_is_not_there_is_named_by_its_setting(small_run, text_file, tmp_path):
    folder = str(small_run[0] / "keep-0.5")
    recovering = {"text": text_file, "tokens": 100, "output_dir": tmp_path, "progress": silent}
    for field, call in (
        ("model", lambda: disp_llm.recover("nowhere", **recovering)),
        ("teacher", lambda: disp_llm.recover(folder, teacher="nowhere", **recovering)),
        ("against", lambda: disp_llm.bench(folder, against="nowhere")),
        ("model", lambda: disp_llm.eval("nowhere", text=text_file)),
    ):
        with pytest.raises(disp_llm.InputError, match=f"^{field}: cannot load 'nowhere'"):
            call()


def test_a_model_in_memory_is_known_again_where_it_lies(llama_folder, text_file, tmp_path):
    """By its numbers, and in its data type, whatever the machine would take."""
    model = transformers.AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    settings = {name: of for name, of in SETTINGS.items() if name != "dtype"}
    call = {"text": text_file, "progress": silent, "keep": 0.8, "output_dir": tmp_path / "run"}
    disp_llm.prune(model, byte_tokenizer(), **call, **settings)
    for more in ({"no_measure": True}, {}):
        config = ExportConfig(tmp_path / "run", keep=(0.7,), **more)
        (made,) = disp_llm.export(config, progress=silent).sizes
        assert (made.measured is None) == bool(more)
    with pytest.raises(disp_llm.InputError, match=r"^kepp: no such setting"):
        disp_llm.export(tmp_path / "run", kepp=0.7, progress=silent)
    unmeasured = {"keep": 0.75, "no_measure": True, "progress": silent}
    (made,) = disp_llm.export(tmp_path / "run", **unmeasured).sizes
    assert (made.share_asked, made.measured) == (0.75, None)
    recovered = disp_llm.recover(
        str(tmp_path / "run" / "keep-0.8"), text=text_file, tokens=128, length=32, batch=1,
        context=32, windows=2, output_dir=tmp_path / "better", progress=silent,
    )  # fmt: skip
    assert recovered.figures["source"]["teacher_revision"] == fingerprint_of(model)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.1)
    with pytest.raises(disp_llm.InputError, match=r"^model: is not what"):
        disp_llm.prune(model, byte_tokenizer(), resume=True, **call, **settings)


def test_a_finished_run_is_not_that_of_another_text(text_file, tmp_path):
    model, text = tiny_model("llama"), text_file.read_text()
    call = {"keep": 0.8, "output_dir": tmp_path, "progress": silent, "resume": "auto"} | SETTINGS
    made, again = (disp_llm.prune(model, byte_tokenizer(), text=[text], **call) for _ in "12")
    assert again.figures == made.figures
    with pytest.raises(disp_llm.InputError, match=r"^text: is not what"):
        disp_llm.prune(model, byte_tokenizer(), text=[text[:-1]], **call)


def test_a_finished_run_is_not_that_of_other_examples(text_file, tmp_path):
    """Text beside them, which is handed over too, is the same."""
    model, rows = tiny_model("llama"), [{"prompt": f"{n} ->", "answer": " two"} for n in range(40)]
    call = {"keep": 0.8, "output_dir": tmp_path, "progress": silent, "resume": "auto"} | SETTINGS
    call |= {"text": [text_file.read_text()], "template": "plain"}
    made, again = (disp_llm.prune(model, byte_tokenizer(), examples=rows, **call) for _ in "12")
    assert again.figures == made.figures
    rows[3] = rows[3] | {"answer": " three"}
    with pytest.raises(disp_llm.InputError, match=r"^examples: is not what"):
        disp_llm.prune(model, byte_tokenizer(), examples=rows, **call)


def test_settings_do_not_name_another_model(small_run, llama_folder, text_file):
    """Those of one model serve the next."""
    config = EvalConfig(str(llama_folder), text=(text_file,))
    folder = str(small_run[0] / "keep-0.5")
    found = [disp_llm.eval(name, config=config, progress=silent) for name in (folder, folder)]
    assert {one["model"] for one in found} == {folder}
    assert found[0]["parameters"] == small_run[1]["models"][0]["parameters"]


def test_a_result_shows_itself(small_run):
    """In a terminal, a notebook, a data frame and a plot."""
    from matplotlib.figure import Figure

    result = PruneResult(*small_run)
    first = small_run[1]["models"][0]["measured"]["perplexity"]
    assert repr(result).startswith(
        f"PruneResult({str(small_run[0])!r}, 0.5: perplexity {first:.2f}"
    )
    assert "\n" not in repr(result)
    html = result._repr_html_()
    assert html.startswith("<table>")
    assert html.count('<th scope="col">') == 4
    assert f"{first:.2f} ± " in html
    frame = pytest.importorskip("pandas") and result.to_frame()
    assert frame["size"].tolist() == ["0.5", "0.8"]
    assert frame["measured.perplexity"][0] == first
    axes = result.plot(Figure().add_subplot())
    assert axes.get_ylabel() == "perplexity"
    assert len(axes.get_lines()) >= 2
    assert PruneResult(small_run[0], {}).sizes == []


def test_what_was_recovered_is_measured_where_it_lies(small_run, text_file, tmp_path):
    """Its figures say where it lay when it was made, from the folder of that time."""
    told = {"model": {"folder": "elsewhere/model"}, "dtype": "float32"}
    shutil.copytree(small_run[0] / "keep-0.5", tmp_path / "model")
    made = RecoverResult(tmp_path, told)
    found = disp_llm.eval(made, text=text_file, windows=2, progress=silent)
    assert found["parameters"] == small_run[1]["models"][0]["parameters"]
    assert found["dtype"] == "float32"


NO_MODELS = """
import disp_lab, disp_llm, torch
from transformers import LlamaConfig, LlamaForCausalLM

llama = LlamaForCausalLM(
    LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2)
)
for task in (
    disp_llm.doctor,
    disp_lab.compare,
    disp_llm.bench,
    lambda model: disp_llm.eval(torch.compile(model)),
    lambda model: disp_llm.eval(model, "smollm2-135m"),
):
    try:
        task(llama)
    except disp_llm.InputError as error:
        print(error)
"""


def test_what_is_no_model_is_refused():
    """In a process of its own, since types of arguments are checked in this one."""
    done = fresh.run(NO_MODELS)
    assert done.returncode == 0, done.stderr
    in_memory = "is a LlamaForCausalLM in memory; save it, and name its folder"
    *by_name, compiled, named = done.stdout.splitlines()
    assert by_name == [f"{field}: {in_memory}" for field in ("model", "model", "model")]
    assert compiled.startswith("model: is a OptimizedModule, and neither")
    assert named.startswith("tokenizer: is a name; give the tokenizer")
