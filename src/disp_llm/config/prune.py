"""What `disp-llm prune` can be asked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from disp_llm.config.bounds import AnyMultiple, Rounds, ShareBelowOne, Size, Some, Word
from disp_llm.config.checks import Use
from disp_llm.config.engines import DEMANDS, Demands
from disp_llm.config.errors import InputError
from disp_llm.config.learning import LearnConfig, TrainingConfig
from disp_llm.config.methods import Reads, reads_of
from disp_llm.config.names import EXPERTS, Bits, Engine, Resume, Site, Tracker
from disp_llm.config.parts import (
    KEEP_OR_TARGET,
    BudgetConfig,
    MachineConfig,
    PerplexityConfig,
    ScoreConfig,
    TextConfig,
    VocabularyConfig,
)
from disp_llm.config.settings import POSITIONAL
from disp_llm.config.targets import Target


@dataclass(frozen=True)
class PruneConfig:
    """Score, learn, export and evaluate: MODEL becomes one or more smaller model folders."""

    USES: ClassVar = (
        KEEP_OR_TARGET,
        Use(
            "steps minutes batch compile",
            when=lambda config: config.reads.steps,
            what="is of learning, and the method {0.method} takes no steps",
            instead="use a `method` that does, such as learned",
        ),
        Use(
            "length",
            when=lambda config: config.reads.steps or config.text.may_be_written,
            what="is of learning and of text that the model writes, and there is none",
            instead="use a `method` that learns",
        ),
        Use(
            "learning_rate betas weight_decay weight_optimizer schedule distill "
            "start parametrisation estimator shift temperature "
            "penalty scale_rate adapter_rank adapter_rate weight_rate",
            when=lambda config: config.reads.learning,
            what="is of the method learned, and the method {0.method} does not read it",
            instead="leave `method` out",
        ),
        Use(
            "calibration_sequences calibration_length",
            when=lambda config: config.reads_calibration,
            what="is of a calibration, and nothing is scored on one",
        ),
        Use(
            "weight_optimizer",
            when=lambda config: config.learn.learns_weights,
            what="steps weights, and none learn",
            instead="add `weight_rate`",
        ),
        Use(
            "shard",
            when=lambda config: config.training.shard != "full" or not config.learn.learns_weights,
            what="divides weights, and they learn where they lie as a whole",
            instead="leave `weight_rate` out",
        ),
        Use(
            "vocabulary",
            when=lambda config: config.training.shard != "full",
            what="is cut of a model that lies whole in every process",
            instead="give a `shard` of no",
        ),
        Use(
            "vocabulary",
            when=lambda config: config.budget.kind != "latency",
            what="takes no part in a `budget` of latency",
            instead="name another `budget`",
        ),
        Use(
            "bits",
            when=lambda config: config.budget.decides and config.budget.kind == "bytes",
            what="is decided by `fit` in megabytes",
            instead="give that",
        ),
        Use(
            "chunk",
            when=lambda config: config.chunk <= 1 or not config.draws_masks,
            what="is more than {0.learn.estimator} can draw, which is single dimensions",
            instead="use the `estimator` projected",
        ),
        Use(
            "sites",
            when=lambda config: EXPERTS not in config.sites or not config.draws_masks,
            what="names experts, and {0.learn.estimator} draws single dimensions",
            instead="use the `estimator` projected",
        ),
        Use(
            "sites",
            when=lambda config: {*config.sites} <= {*config.demands.sites},
            what="names more than `for_` {0.for_} can run, which is {0.demands.sites_said}",
            instead="name some of these",
        ),
        Use(
            "for_",
            when=lambda config: not (config.demands.has_own_format and config.budget.decides),
            what="has a format of its own, and the answer to `fit` would be stored in another",
            instead="name a `budget`, which decides no bits",
        ),
    )
    USUAL: ClassVar = (
        "keep text eval_text examples output_dir recipe method sites for_ fit vocabulary "
        "suite steps minutes device resume"
    )
    """Settings that a short help lists."""

    model: Annotated[Word, POSITIONAL]
    """Hub id, folder, GGUF file, or smollm2-135m, the embedded default."""
    keep: tuple[Size, ...] = (0.5,)
    """Share of block parameters to keep, in (0, 1]. Several give several models."""
    output_dir: Path = Path("run")
    """The run folder."""
    recipe: Word = "default"
    """Shipped settings, such as retrain, disp, domain, paper."""
    method: str = "learned"
    """Method that chooses masks: learned, fisher, or one that a package adds."""
    sites: tuple[Site, ...] = ()
    """Where the method prunes. Default: the sites of the method, as far as --for can run them.
    heads shrinks the KV cache, experts drops experts, attention and mlp drop whole branches."""
    bits: Annotated[tuple[Bits, ...], Some] = ("as-is", "int8", "int4")
    """Ways to store weights that --fit chooses between."""
    for_: Engine = "transformers"
    """Program that is to run the result: prune what it can run, and write its format beside each
    size. vllm: no whole attention or experts. llama.cpp: GGUF. nemotron-nas: read by vLLM, SGLang,
    TensorRT-LLM and mlx-lm; MLP widths in steps of 256. anywhere: the original's own class, one
    width for all blocks; --sites mlp_mid heads adds heads."""
    least_cut: ShareBelowOne = 0.1
    """Skip a gather or scatter that would drop less than this share of the stream. 0 = skip
    none."""
    chunk: AnyMultiple = 0
    """Neighbouring dimensions of the stream that stay or go together. 0 = 32, and at most
    --align, where weights or adapters learn beside the masks; else 1."""
    align: AnyMultiple = 0
    """Make widths multiples of this number. 0 = 64 on a GPU, 32 on a CPU, 1 for a stream below
    512."""
    suite: str = ""
    """Texts and tasks to measure every model on: general, commonsense, or a .toml file."""
    rounds: Rounds = 5
    """Times that each model is timed in turn with the original; 0 = not timed."""
    resume: Resume = False
    """Continue the run in --output-dir; auto starts one where there is none."""
    anyway: bool = False
    """Go on although the model or a file has changed."""
    track: Tracker = "none"
    """Tracker that also logs every step; it must be installed."""
    text: TextConfig = field(default_factory=TextConfig)
    evaluation: PerplexityConfig = field(default_factory=PerplexityConfig)
    scores: ScoreConfig = field(default_factory=ScoreConfig)
    learn: LearnConfig = field(default_factory=LearnConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)

    @property
    def demands(self) -> Demands:
        """What the program asks for that is to run the result."""
        return DEMANDS[self.for_]

    @property
    def reads(self) -> Reads:
        """What its method reads."""
        return reads_of(self.method)

    @property
    def reads_calibration(self) -> bool:
        """Whether scores are taken: by the method, or where learning begins."""
        draws = self.method == "learned" and self.learn.start == "random"
        return self.reads.calibration and not draws

    @property
    def draws_masks(self) -> bool:
        """Whether masks are drawn at random at every step."""
        return self.method == "learned" and self.learn.estimator != "projected"

    @property
    def cuts_tokens(self) -> bool:
        """Whether the vocabulary may become smaller."""
        return self.vocabulary.vocabulary > 0 or self.budget.decides

    @property
    def sizes(self) -> tuple[Target, ...]:
        """The sizes that are to be written, of what the budget limits."""
        return self.budget.sizes(self.keep)

    def validate(self) -> None:
        """Refuses sizes that no model has, and masks that nothing holds to one."""
        self.budget.require_sizes(self.keep)
        if self.draws_masks and not self.learn.penalty:
            raise InputError(
                f"{self.learn.estimator} draws masks that nothing holds to a size",
                field="penalty",
                hint="give one (the paper: 6), or use the `estimator` projected",
            )
