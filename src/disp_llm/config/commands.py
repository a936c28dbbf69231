"""What the commands that train nothing can be asked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from disp_llm.config.bounds import (
    AnyTokens,
    Batch,
    Length,
    Number,
    Points,
    Size,
    Some,
    Window,
    Word,
)
from disp_llm.config.checks import Use, not_with, only_with
from disp_llm.config.errors import InputError
from disp_llm.config.learning import TrainingConfig
from disp_llm.config.names import SELF, Format, Template
from disp_llm.config.parts import (
    KEEP_OR_TARGET,
    BudgetConfig,
    PerplexityConfig,
    PlaceConfig,
    TextConfig,
    require_sizes,
)
from disp_llm.config.settings import POSITIONAL
from disp_llm.config.targets import Target


@dataclass(frozen=True)
class ExportConfig:
    """Write another size of a run that has learned, without learning again."""

    USES: ClassVar = (
        KEEP_OR_TARGET,
        Use(
            "no_measure",
            when=lambda config: config.budget.kind != "latency",
            what="is given, and a `budget` of latency cannot be met without measuring",
            instead="give another `budget`",
        ),
    )

    run: Annotated[Path, POSITIONAL]
    """The run folder."""
    keep: tuple[Size, ...] = ()
    """Share of block parameters to keep, in (0, 1]."""
    no_measure: bool = False
    """Write the model and run nothing. The folder is made tensor by tensor; the same command
    without this flag measures it later."""
    anyway: bool = False
    """Go on although the model or a file has changed."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    device: str = "auto"
    """Device to run on: cpu, cuda, ...; everything else is taken from the run."""

    @property
    def sizes(self) -> tuple[Target, ...]:
        """The sizes that are to be written, of what the budget limits."""
        return self.budget.sizes(self.keep)

    def validate(self) -> None:
        """Refuses sizes that no model has."""
        self.budget.require_sizes(self.keep)


@dataclass(frozen=True)
class ConvertConfig:
    """Write an exported folder in another format, into a folder of its own."""

    USES: ClassVar = (
        Use("text", when=lambda config: config.to == "int4", what="calibrates int4 alone"),
        Use(
            "text_field device",
            when=lambda config: config.to == "int4" and config.text,
            what="is of a text that int4 is calibrated on",
            instead="give `text`",
        ),
        Use(
            "embeddings",
            when=lambda config: config.to in ("int8", "int4"),
            what="is of weights in 8 or 4 bits",
            instead="name int8 or int4",
        ),
        Use(
            "text",
            when=lambda config: Path(SELF) not in config.text,
            what="cannot be the model's own text here",
            instead="name the text that it was pruned for",
        ),
    )

    folder: Annotated[Path, POSITIONAL]
    """An exported folder, such as run/keep-0.5."""
    to: Format
    """folder is a copy to share. plain has the original's own class (prune --for anywhere). gguf is
    for llama.cpp (--for llama.cpp), nemotron-nas for vLLM, SGLang, TensorRT-LLM and mlx-lm (--for
    nemotron-nas). int8 and int4 are for transformers and vLLM; int4 needs widths that are multiples
    of 32 (--align 32)."""
    output_dir: Path
    """The new folder."""
    text: tuple[Path, ...] = ()
    """Text that int4 is calibrated on, by GPTQ. Default: each weight is rounded to the nearest."""
    text_field: Word = "text"
    """Key or column that holds the text, in .jsonl, .json, .csv and .parquet files."""
    embeddings: bool = False
    """Store embedding and head in 8 bits too: half of their bytes. vLLM does not read that."""
    device: str = "auto"
    """Device that calibrates: cpu, cuda, ..."""

    @property
    def calibration(self) -> TextConfig:
        """Where the tokens of the calibration come from."""
        return TextConfig(text=self.text, text_field=self.text_field)

    def validate(self) -> None:
        """Refuses a copy inside of what is copied."""
        if self.folder.resolve() in self.output_dir.resolve().parents:
            raise InputError(
                f"{self.output_dir} lies inside the folder that is copied",
                field="output_dir",
                hint="name a place outside of it",
            )


@dataclass(frozen=True)
class PushConfig:
    """Upload an exported folder to the hub, in one commit."""

    folder: Annotated[Path, POSITIONAL]
    """An exported folder, such as run/keep-0.5."""
    name: Annotated[Word, POSITIONAL]
    """OWNER/NAME on the hub; it is made where there is none. HF_ENDPOINT names another hub."""
    to: Format = "folder"
    """Format that is uploaded, as `convert` has them."""
    private: bool = False
    """Make the repository private."""


@dataclass(frozen=True)
class EvalConfig:
    """Measure perplexity and tasks of a model or of an exported folder."""

    USES: ClassVar = (
        not_with(
            "suite",
            "text text_field dataset examples template tasks shots limit context windows",
            instead="write it into the suite's file",
        ),
        only_with("suite", "against", "is for a suite"),
        only_with("tasks", "shots", "is for tasks"),
        only_with("tasks examples", "limit", "counts questions, and none is asked"),
        not_with("text", "dataset examples"),
        not_with("dataset", "examples"),
        Use(
            "context windows",
            when=lambda config: config.suite or config.reads_text,
            what="is of perplexity, and none is measured",
            instead="give `text`",
        ),
        only_with("examples", "template", "is of examples"),
        only_with("text dataset", "text_field", "is of a text"),
    )

    model: Annotated[Word, POSITIONAL]
    """Hub id, folder, GGUF file, or smollm2-135m."""
    text: tuple[Path, ...] = ()
    """Text to measure on: files or folders. Default: the held-out tenth of the embedded
    speeches."""
    text_field: Word = "text"
    """Key or column that holds the text in .jsonl, .json, .csv and .parquet files."""
    dataset: str = ""
    """Hub data set in place of --text: NAME:CONFIG:SPLIT. The default split is test."""
    examples: tuple[Path, ...] = ()
    """Examples in place of --text: the perplexity of answers, and what the model's own answers
    score."""
    template: Template = "auto"
    """How an example is written: by the tokenizer's chat template, or as prompt and answer. auto
    takes the template where there is one."""
    tasks: tuple[Word, ...] = ()
    """Tasks or groups of lm-evaluation-harness, such as arc_easy or mmlu, or a task of yours by its
    .yaml file; paper is the paper's five."""
    shots: Number | None = None
    """Solved questions before each question of --tasks. Default: the task's own number."""
    limit: AnyTokens = 0
    """Questions of each task, and examples that are answered; 0 = all."""
    suite: str = ""
    """Texts and tasks in place of these: general, commonsense, or a .toml file."""
    against: str = ""
    """What --suite compares with. Default: the original of an exported folder."""
    evaluation: PerplexityConfig = field(default_factory=PerplexityConfig)
    machine: PlaceConfig = field(default_factory=PlaceConfig)

    @property
    def reads_text(self) -> bool:
        """Whether perplexity is measured."""
        return bool(self.text or self.dataset or self.examples or not self.tasks)


@dataclass(frozen=True)
class AnswerConfig:
    """How models answer."""

    against: str = ""
    """Model that answers too; `original` is what an exported folder was made from."""
    max_new_tokens: Length = 128
    """Most tokens of an answer."""
    template: Template = "auto"
    """How what is said is written: by the tokenizer's chat template, or as it is. auto takes the
    template where there is one."""


@dataclass(frozen=True)
class GenerateConfig:
    """Answer a prompt by greedy decoding."""

    model: Annotated[Word, POSITIONAL]
    """Exported folder, or any model."""
    prompt: Annotated[Word, POSITIONAL]
    """What it answers."""
    answers: AnswerConfig = field(default_factory=AnswerConfig)
    machine: PlaceConfig = field(default_factory=PlaceConfig)


@dataclass(frozen=True)
class ChatConfig:
    """Chat in the terminal; an empty line starts a new conversation."""

    model: Annotated[Word, POSITIONAL]
    """Exported folder, or any model."""
    answers: AnswerConfig = AnswerConfig(max_new_tokens=256)
    machine: PlaceConfig = field(default_factory=PlaceConfig)


@dataclass(frozen=True)
class BenchConfig:
    """Measure speed, memory and load time of a folder against its original, on this machine."""

    model: Annotated[Word, POSITIONAL]
    """Exported folder, or any model."""
    against: str = ""
    """Model to compare with. Default: the original of an exported folder."""
    length: Annotated[tuple[Length, ...], Some] = (128, 512)
    """Prompt lengths of prefill, in tokens."""
    batch: Annotated[tuple[Batch, ...], Some] = (1, 8)
    """Numbers of sequences that are decoded together."""
    context: Length = 128
    """Tokens in the KV cache while decoding."""
    rounds: Points = 12
    """Times that each model is timed, in turn."""
    compile: bool = False
    """Run both models through torch.compile."""
    machine: PlaceConfig = field(default_factory=PlaceConfig)


@dataclass(frozen=True)
class DoctorConfig:
    """Say whether a model is supported, what each size costs, and whether learning fits here."""

    model: Annotated[Word, POSITIONAL]
    """Hub id, folder, GGUF file, or smollm2-135m."""
    keep: tuple[Size, ...] = (0.8, 0.7, 0.6, 0.5)
    """Sizes to list."""
    fit: tuple[float | str, ...] = ()
    """An amount such as 100MB: what `prune --fit` would keep of the blocks in 16, 8 and 4 bits."""
    length: Window = TrainingConfig.length
    """Tokens of a training window, for the memory estimate."""
    batch: Batch = TrainingConfig.batch
    """Training windows of a batch, for the same."""
    device: str = "auto"
    """Device whose memory is compared: cpu, cuda, ..."""

    def validate(self) -> None:
        """Refuses sizes that no model has."""
        require_sizes("keep", self.keep)
        if self.fit:
            self.fitting.require_sizes(())
            if not self.fitting.decides:
                hint = "give megabytes, or a share of them"
                raise InputError("time has to be measured", field="fit", hint=hint)

    @property
    def fitting(self) -> BudgetConfig:
        """The same as `prune` takes it."""
        return BudgetConfig(fit=self.fit)


@dataclass(frozen=True)
class ReportConfig:
    """Write one self-contained HTML page about a run, finished or not."""

    run: Annotated[Path, POSITIONAL]
    """The run folder."""
    output: Path | None = None
    """File of the page. Default: report.html in the run folder."""
    anyway: bool = False
    """Show files that have changed."""


@dataclass(frozen=True)
class VerifyConfig:
    """Check the files of a run, a comparison or an exported folder against their hashes."""

    folder: Annotated[Path, POSITIONAL]
    """The folder of a `prune`, `recover` or `compare`, or a model folder such as run/keep-0.5."""
