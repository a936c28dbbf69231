"""What every command but `prune` can be asked, as frozen dataclasses; no torch here.

A field's docstring is its `--help`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from disp_llm.config import (
    BudgetConfig,
    EvalConfig,
    ExportConfig,
    LearnConfig,
    MachineConfig,
    MethodName,
    PruneConfig,
    RewriteName,
    ScoreConfig,
    TextConfig,
    VariantName,
)


@dataclass(frozen=True)
class ExportCommand:
    """Another size from a run that has learned, without learning again."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    keep: tuple[float, ...] = ()
    """Share of block parameters that stays, in (0, 1]."""
    json: bool = False
    """Print one JSON object on standard output."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    device: str = "auto"
    """cpu, cuda, ...; the rest is taken from the run."""


@dataclass(frozen=True)
class RecoverCommand:
    """Wins quality back: trains what pruning left, on text and on the original's own words."""

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    """An exported folder, such as run/model; or any model."""
    output_dir: Path = Path("recovered")
    """The new run folder; the model is its model/."""
    how: Literal["full", "lora"] = "full"
    """Train all weights of the blocks, or low-rank adapters that are merged at the end."""
    rank: int = 32
    """Of the adapters."""
    teacher: str = ""
    """Hub id, folder or smollm2-135m. Default: the original that the folder's card names."""
    distill: float = 0.5
    """Share of the loss that is the divergence from the teacher; the rest is cross-entropy."""
    tokens: int = 1_000_000
    """How many to train on."""
    length: int = 512
    """Tokens of a window."""
    batch: int = 4
    """Windows at a time and process."""
    accumulate: int = 1
    """Batches a step whose gradients are averaged."""
    learning_rate: float = 5e-4
    """Peak of AdamW's step size; it falls to a tenth in a cosine."""
    checkpoint_every: int = 100
    """Steps between checkpoints; one is also written on SIGINT and SIGTERM."""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, a third more time."""
    max_shard_size: str = "5GB"
    """Largest file of weights."""
    resume: bool = False
    """Go on where the run in --output-dir stopped."""
    json: bool = False
    """Print one JSON object on standard output."""
    text: TextConfig = field(default_factory=TextConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)


@dataclass(frozen=True)
class CompareCommand:
    """Methods side by side: same model, text, budget, exporter and evaluation."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Hub id, local folder, or smollm2-135m."""
    methods: tuple[MethodName | VariantName | RewriteName | Literal["all"], ...] = ("all",)
    """Which; `learned` is ours. Methods that drop dimensions leave run folders with exported
    models; those that rewrite layers (from `greedy` on) are measured and not written."""
    keep: tuple[float, ...] = (0.8, 0.7, 0.5)
    """Share of block parameters that stays, in (0, 1]."""
    output_dir: Path = Path("comparison")
    """Gets compare.json, compare.md, compare.png and the run folders. Rows that are there are not
    made again."""
    steps: int = 150
    """Of methods that learn."""
    length: int = 512
    """Tokens of their learning windows."""
    rounds: int = 7
    """How often each model is timed, in turn with the original; 0 = not timed."""
    json: bool = False
    """Print one JSON object on standard output."""
    text: TextConfig = field(default_factory=TextConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    scores: ScoreConfig = field(default_factory=ScoreConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)


@dataclass(frozen=True)
class ReportCommand:
    """One self-contained HTML page of one or several runs, finished or not."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")]
    """Run folders. A `bench.json` in one (`disp-llm bench … --json`) is shown with it."""
    output: Path | None = None
    """The page. Default: report.html in the run folder, or here for several runs."""
    json: bool = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True)
class EvalCommand:
    """Perplexity of a model or of an exported folder."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Hub id, folder, or smollm2-135m."""
    text: tuple[Path, ...] = ()
    """Text to measure on. Default: the embedded speeches' held-out tenth."""
    text_field: str = "text"
    """Field of a .jsonl line or column of a .parquet file that holds the text."""
    dataset: str = ""
    """A hub data set in place of --text, NAME:CONFIG:SPLIT (split: test)."""
    tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness, such as arc_easy piqa; `paper` is the paper's five. Without
    --text or --dataset, perplexity is then not measured."""
    task_data: tuple[str, ...] = ()
    """NAME=FILE: a local JSON-lines file in place of that task's hub data set."""
    limit: int = 0
    """Questions of each task; 0 = all."""
    json: bool = False
    """Print one JSON object on standard output."""
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)


@dataclass(frozen=True)
class DoctorCommand:
    """Is this model supported, which sites does it have, what would each keep cost, does it fit?"""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Hub id, folder, or smollm2-135m."""
    keep: tuple[float, ...] = (0.8, 0.7, 0.6, 0.5)
    """Sizes to list."""
    length: int = LearnConfig.length
    """Tokens of a learning window, for the memory estimate."""
    measure: bool = False
    """Also load the model and time alignments of its widths on this machine; `prune` then uses the
    best one."""
    json: bool = False
    """Print one JSON object on standard output."""
    device: str = "auto"
    """cpu, cuda, ...: whose memory is compared."""


@dataclass(frozen=True)
class BenchCommand:
    """Speed, memory and load time of a folder against its original, on this machine."""

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    """An exported folder, or any model."""
    against: str
    """The model that it is compared with: hub id, folder, or smollm2-135m."""
    lengths: tuple[int, ...] = (128, 512)
    """Prompts of prefill, in tokens."""
    batches: tuple[int, ...] = (1, 8)
    """Sequences that are decoded together."""
    context: int = 128
    """Tokens in the cache while decoding."""
    rounds: int = 12
    """How often each is timed, in turn."""
    compile: bool = False
    """Run both models through torch.compile."""
    fuse: bool = False
    """Join q, k, v and gate, up of both models, as `disp_llm.fuse.fuse` does."""
    plot: Path | None = None
    """Draw the result into this .png or .svg file."""
    json: bool = False
    """Print one JSON object on standard output."""
    machine: MachineConfig = field(default_factory=MachineConfig)


@dataclass(frozen=True)
class SaveCommand:
    """Copies an exported folder to a place of its own, with a card that names it."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """An exported folder, such as run/model."""
    to: Path
    """The new folder."""
    plain: bool = False
    """Write the original's own architecture, which any engine loads: possible where blocks differ
    from the original by one and the same intermediate width (--sites mlp_mid)."""
    license: str = ""
    """The hub's name of a licence, such as apache-2.0. Default: the original's, where known."""
    json: bool = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True)
class PushCommand:
    """Uploads an exported folder to the hub, with its card, in one commit."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """An exported folder, such as run/model."""
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """OWNER/NAME on the hub; made where there is none. HF_ENDPOINT names another hub."""
    private: bool = False
    """Make the repository private."""
    license: str = ""
    """The hub's name of a licence, such as apache-2.0. Default: the original's, where known."""
    message: str = "Upload a model pruned by disp-llm"
    """Of the commit."""
    json: bool = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True)
class GgufCommand:
    """Writes a folder that was pruned with --sites mlp_mid as a GGUF file for llama.cpp."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """An exported folder, such as run/model."""
    original: Path
    """A GGUF file of the original: vocabulary and embedding are taken from it."""
    to: Path
    """The new file."""
    dtype: Literal["f16", "bf16", "f32"] = "f16"
    """Of the weights; llama.cpp's own tools quantise further."""
    json: bool = False
    """Print one JSON object on standard output."""


Command = (
    PruneConfig
    | ExportCommand
    | RecoverCommand
    | CompareCommand
    | ReportCommand
    | EvalCommand
    | DoctorCommand
    | BenchCommand
    | SaveCommand
    | PushCommand
    | GgufCommand
)
