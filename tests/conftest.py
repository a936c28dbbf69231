"""Tiny models of every family, a byte-level tokenizer, text, and commands run as a user runs
them."""

import gc
import importlib.metadata
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any

# Before anything that reads them when it is imported.
os.environ |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Before our own modules too: to look through all packages takes a fifth of a comparison's time.
_entry_points = importlib.metadata.entry_points


@cache
def _entry_points_of(places: tuple, given: tuple) -> Any:
    return _entry_points(**dict(given))


def _known_entry_points(**given: str) -> Any:
    """Looked for once for as long as no folder that packages are in has changed."""
    places = tuple((path, os.stat(path).st_mtime_ns) for path in sys.path if os.path.isdir(path))
    return _entry_points_of(places, tuple(given.items()))


importlib.metadata.entry_points = _known_entry_points

# Before our own modules: what these would import while jaxtyping checks them would be compiled
# anew, 1,600 files of it, since jaxtyping looks for compiled files of its own.
import checking  # noqa: F401  (how they are checked)
import fresh
import pytest
import torch
import transformers
from accelerate import Accelerator
from configurations import tiny_config, unusual_values
from safetensors.torch import load_file, save_file
from small import SETTINGS, SMALL, settled  # noqa: F401
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationMixin, PreTrainedModel  # noqa: F401

import disp_llm  # noqa: F401  (registers the compact classes)
from disp_lab.parts.activations import visit_blocks
from disp_llm.cli.main import main
from disp_llm.config.names import BRANCHES, COUPLED, EXPERTS, HEADS, SITES, Site
from disp_llm.config.parts import MachineConfig, ScoreConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.data.tokens import tokenize
from disp_llm.data.windows import Corpus
from disp_llm.evaluation import measuring
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.layout import Layout
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Compensation, Masks, Selection
from disp_llm.methods import Method
from disp_llm.models.architectures import family_of
from disp_llm.reporting import page
from disp_llm.reporting.terminal import messages, results
from disp_llm.runs.folder import Run
from disp_llm.runs.job import Job, Process
from disp_llm.runs.ownership import kind_of, mark
from disp_llm.runs.sums import write_sums
from disp_llm.training.problem import PruningProblem

torch.set_num_threads(1)  # the models are too small for more, and a spinning thread starves others
measuring.SAMPLE_TOKENS = 8  # writing 48 is a third of a tiny run
os.fsync = lambda descriptor: None  # no test cuts the power, and the disk takes as long as the CPU
_draw = page.loss_chart
_drawn: dict[tuple, str] = {}


@wraps(_draw)  # benchmarks/mutation_score.py looks below it
def _chart_of(steps: Any) -> str:
    """A curve is drawn once, which takes a seventh of a tiny run: many runs here are the same."""
    curve = tuple((step.tokens, step.loss) for step in steps)
    if curve not in _drawn:
        _drawn[curve] = _draw(steps)
    return _drawn[curve]


page.loss_chart = _chart_of


def pytest_collection_finish() -> None:
    """What the libraries hold stays to the end: to look through it again and again would take a
    tenth of the time."""
    gc.freeze()
    gc.set_threshold(50_000)


class StopAfter:
    """In place of `StopSignals.__call__`: asks to stop after so many questions, one a step."""

    def __init__(self, steps: int):
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def tiny_model(model_type: str, seed: int = 0, **changes):
    """Random weights, large enough to matter; norms and biases away from their trivial values."""
    torch.manual_seed(seed)
    config = tiny_config(model_type, **changes)
    return random_weights(transformers.AutoModelForCausalLM.from_config(config))


def random_weights(model):
    """The model with weights as `tiny_model` has them, frozen."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 or not parameter.any():
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(3)
    return model.eval().requires_grad_(False)


def tiny_prunable(
    model_type: str, heads: bool = False, branches: bool = False, experts: bool = False, **changes
) -> PrunableModel:
    """A tiny model with its row of the table; with `heads`, `branches` and `experts`, these are
    sites too."""
    model = tiny_model(model_type, **changes)
    return PrunableModel(model, family_of(model.config), sites_with(heads, branches, experts))


def unusual_prunable(
    model_type: str, heads: bool = False, branches: bool = False, experts: bool = False
) -> PrunableModel:
    """The same of an unusual configuration."""
    return tiny_prunable(model_type, heads, branches, experts, **unusual_values(model_type))


def sites_with(
    heads: bool = False, branches: bool = False, experts: bool = False
) -> tuple[Site, ...]:
    """The five sites and what else may be pruned."""
    more = ((HEADS,) if heads else ()) + ((EXPERTS,) if experts else ())
    return (*SITES, *more, *(BRANCHES if branches else ()))


def masks_of(kind: str, layout, seed: int = 0) -> Masks:
    """Random (a different width at every site), every entry, or one entry a site."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "random":
        shares = torch.rand(len(layout.lengths), generator=generator) * 0.8 + 0.1
        kept = torch.rand(layout.entries, generator=generator) < shares[layout.site_of_entry]
    else:
        kept = torch.full((layout.entries,), kind == "keep-all")
    least = [least for block in layout.blocks for least in block.least]
    for part, lanes, few in zip(layout.split(kept), layout.lanes, least, strict=True):
        wanted = max(int(part[: len(part) // lanes].sum()), few, 1)
        for lane in part.view(lanes, -1):  # no site may be empty, and each expert keeps as many
            lane[:] = torch.randperm(len(lane), generator=generator) < wanted
    return Masks(layout, kept, Selection(torch.zeros(layout.entries)))


def chunked_masks(layout: Layout, chunk: int, seed: int = 0) -> Masks:
    """Random masks of 0.6 of the parameters, by chunks of neighbours in the residual stream."""
    scores = torch.randn(layout.entries, generator=torch.Generator().manual_seed(seed))
    kept = project(scores, Budget(layout, chunk=chunk), 0.6).kept
    return Masks(layout, kept, Selection(scores))


def without_branches(
    target: PrunableModel,
    scales: torch.Tensor | None = None,
    dropped: tuple[str, ...] = ("layers.1.attention", "layers.2.mlp"),
) -> Masks:
    """Random masks; the second block has no attention, the third no MLP."""
    layout = target.layout
    kept = masks_of("random", layout).kept
    for name, part in zip(layout.names, layout.split(kept), strict=True):
        part &= name not in dropped
    selection = Selection(torch.zeros(layout.entries), Compensation(scales))
    return Masks(layout, layout.without_dropped(kept), selection)


def byte_tokenizer(bos: bool = False) -> transformers.PreTrainedTokenizerFast:
    """One token a byte, after four special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if bos:
        from tokenizers.processors import TemplateProcessing

        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory) -> Path:
    """A tiny Llama with its tokenizer, as a user has it on disk."""
    folder = tmp_path_factory.mktemp("llama")
    tiny_model("llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory) -> Path:
    """Another tiny Llama, which stands for an original."""
    folder = tmp_path_factory.mktemp("other")
    tiny_model("llama", seed=1).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """Some 10,000 bytes with structure that a model could learn."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    lines = [f"Line {i}: the square of {i} is {i * i}, and its cube {i**3}.\n" for i in range(200)]
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def index_of_some_tasks():
    """lm-eval's index of the ARC tasks and PIQA; that of all its tasks takes seven seconds."""
    pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    from lm_eval import tasks

    shipped = Path(tasks.__file__).parent
    folders = [shipped / "arc", shipped / "piqa"]
    index = partial(tasks.TaskManager, include_defaults=False, include_path=folders)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "TaskManager", index)
        yield index


@pytest.fixture
def questions(tmp_path) -> Path:
    """Twelve questions in the form of the ARC tasks."""
    path = tmp_path / "questions.jsonl"
    rows = [
        {
            "id": str(i),
            "question": f"What is {i} plus {i}?",
            "choices": {"text": [str(2 * i), str(2 * i + 1), str(3 * i + 1)], "label": list("ABC")},
            "answerKey": "A",
        }
        for i in range(12)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def run_process(*arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    """`disp-llm ...` in a process of its own, where the process is what is tested.

    Args:
        before: lines of Python that the process begins with.
    """
    return fresh.start_command(*arguments, before=before).wait()


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`disp-llm ...` in this process: loading the libraries takes longer than most commands do."""
    out, err = io.StringIO(), io.StringIO()
    command = ["disp-llm", *settled(arguments)]
    code: object = 0
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
    ):
        patch.setattr(sys, "argv", command)
        for output in (messages, results):
            patch.setattr(output, "quiet", False)
        patch.setattr(results, "stderr", False)  # and so again after the command
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            traceback.print_exc(file=err)
            code = 1
        finally:
            logging.captureWarnings(False)
            logging.getLogger().handlers.clear()
            logging.getLogger().setLevel(logging.WARNING)
    return subprocess.CompletedProcess(
        command, code if isinstance(code, int) else 0, out.getvalue(), err.getvalue()
    )


def must_run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A command that ends well."""
    done = run_command(*arguments)
    assert done.returncode == 0, done.stderr
    return done


def must_refuse(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A command that is refused, in one line, which is the last; `verify` lists problems on
    standard output."""
    done = run_command(*arguments)
    assert done.returncode == 2, done.stderr
    lists = arguments[0] == "verify" and bool(done.stdout)
    assert lists or done.stderr.splitlines()[-1].startswith("disp-llm: "), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, llama_folder, text_file) -> tuple[Path, dict]:
    """A finished run of the tiny Llama at two sizes, every site of the stream cut, and what
    `prune --json` printed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = must_run(
        "prune", llama_folder, "--recipe", "disp", "--keep", 0.5, 0.8, "--text", text_file,
        "--output-dir", folder, "--json", *SMALL,
    )  # fmt: skip
    return folder, json.loads(done.stdout)


def kept_in(run: Path, size: str = "0.5") -> dict[str, torch.Tensor]:
    """The kept indices of a size, by site."""
    begins, tensors = f"kept.{size}.", load_file(run / "selection.safetensors")
    return {k.removeprefix(begins): v for k, v in tensors.items() if k.startswith(begins)}


BEGUN = {
    "status": "running",
    "run": "run",
    "dtype": "float32",
    "command": "disp_llm",
    "seed": 0,
    "versions": {"disp-llm": "0"},
    "hardware": {"cpu": "one", "threads": 1, "system": "this"},
}
"""What `result.json` holds when a run begins."""


FEW = """
    --text speeches --steps 12 --length 256 --calibration-sequences 4 --windows 2
""".split()
"""Flags of a run on the real model that takes a minute."""


@pytest.fixture(scope="session")
def smollm2_run(tmp_path_factory) -> tuple[Path, dict]:
    """A short run of the embedded model at two sizes, for proofs, and what it printed."""
    folder = tmp_path_factory.mktemp("smollm2") / "run"
    done = run_process(
        "prune", "smollm2-135m", "--keep", 0.5, 1.0, "--output-dir", folder, "--json", *FEW
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def one_process() -> Process:
    """This process alone, on the CPU."""
    return Process(Accelerator(cpu=True), torch.device("cpu"))


def run_in(folder: Path, **given) -> Run:
    """A run in a folder that bears our mark."""
    folder.mkdir(parents=True, exist_ok=True)
    if not kind_of(folder):
        mark(folder, "prune")
    return Run(folder, **given)


def problem_of(
    model_type: str, text: str, folder: Path, heads: bool = False, **changes
) -> PruningProblem:
    """A tiny model with a text to calibrate on; with `heads`, dimensions are pruned where coupled
    methods prune them."""
    model = tiny_model(model_type, **changes)
    dense = PrunableModel(model, family_of(model.config), sites_with(heads))
    budget = Budget(dense.layout, sites=COUPLED) if heads else Budget(dense.layout)
    corpus = Corpus((_tokens(text).clone(),))
    scores = ScoreConfig(calibration_sequences=4, calibration_length=32)
    config = PruneConfig("tiny", scores=scores, machine=MachineConfig(device="cpu"))
    job = Job(config, run_in(folder), one_process())
    return PruningProblem(dense, corpus, budget, (0.6,), align=1, job=job)


@pytest.fixture
def problem(text_file, tmp_path) -> PruningProblem:
    """Of the tiny Llama, without heads as a site."""
    return problem_of("llama", text_file.read_text(), tmp_path)


@cache
def _tokens(text: str) -> torch.Tensor:
    """Once, since it takes longer than making the model does."""
    return tokenize([text], byte_tokenizer())


def with_config(problem: PruningProblem, **parts) -> PruningProblem:
    """The same problem with other parts of its configuration."""
    config = replace(problem.job.config, **parts)
    return replace(problem, job=replace(problem.job, config=config))


def moments_of(problem: PruningProblem, prunable: PrunableModel) -> list[dict[str, torch.Tensor]]:
    """`Σ x·xᵀ` of what enters each linear layer of every block of a model."""
    moments = []
    visit_blocks(problem, prunable, lambda index, block, found: moments.append(found))
    return moments


@pytest.fixture(params=["aot_eager", pytest.param("inductor", marks=pytest.mark.proof)])
def compiler(request, monkeypatch):
    """What runs the graphs of `torch.compile`: as they are, or as C++, which takes a minute to
    build."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=request.param))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.fixture
def no_registered_methods(monkeypatch):
    """What a test registers is forgotten after it."""
    registered: dict[str, Method] = {}
    monkeypatch.setattr("disp_llm.methods.registered", registered)
    monkeypatch.setattr("disp_llm.config.methods.registered", registered)


@pytest.fixture(scope="session")
def wide_folder(tmp_path_factory, text_file):
    """A pruned folder in bfloat16, all of whose widths are multiples of 32."""
    place = tmp_path_factory.mktemp("wide")
    model = tiny_model("llama", hidden_size=128, head_dim=32, intermediate_size=192)
    model.to(torch.bfloat16).save_pretrained(place / "dense")
    byte_tokenizer().save_pretrained(place / "dense")
    flags = ("--method", "magnitude", "--keep", 0.5, "--align", 32)
    done = run_command(
        "prune", place / "dense", "--text", text_file, "--output-dir", place / "run", *SMALL, *flags
    )
    assert done.returncode == 0, done.stderr
    return place / "run" / "keep-0.5"


@pytest.fixture
def odd_folder(wide_folder, tmp_path):
    """A copy whose second block has 16 intermediate dimensions less, and so no groups of 32."""
    odd = tmp_path / "odd"
    shutil.copytree(wide_folder, odd)
    config = json.loads((odd / "config.json").read_text())
    width = config["disp_llm"]["widths"]["mlp_mid"][1] - 16
    config["disp_llm"]["widths"]["mlp_mid"][1] = width
    (odd / "config.json").write_text(json.dumps(config))
    tensors = load_file(odd / "model.safetensors")
    for name, side in (("gate", 0), ("up", 0), ("down", 1)):
        key = f"model.layers.1.mlp.{name}_proj.weight"
        tensors[key] = tensors[key].narrow(side, 0, width).contiguous()
    save_file(tensors, odd / "model.safetensors", metadata={"format": "pt"})
    write_sums(odd)
    return odd
