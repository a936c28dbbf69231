"""Every knob, as frozen dataclasses: defaults < recipe < flags. No torch here.

A field's docstring is its `--help`. `resolved` turns a configuration into what `config.toml` holds.
"""

import dataclasses
import difflib
import functools
import tomllib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

Estimator = Literal[
    "projected",
    "reinmax",
    "reinmax_printed",
    "straight_through",
    "gumbel_soft",
    "gumbel_hard",
    "policy_gradient",
]

Parametrisation = Literal["logits", "hypernetwork", "heads"]

BudgetKind = Literal["params", "flops", "bytes", "latency"]

Site = Literal["attn_in", "attn_out", "mlp_in", "mlp_mid", "mlp_out", "heads"]

SITES: tuple[Site, ...] = ("attn_in", "attn_out", "mlp_in", "mlp_mid", "mlp_out")
"""S1 to S5 of the paper, in the order in which a block's entries lie in the flat vector."""

HEADS: Site = "heads"
"""A sixth site, only where it is asked for: an entry is a KV head with the queries that read it."""

Schedule = Literal["cosine", "constant"]

MethodName = Literal[
    "learned", "fisher", "taylor", "flap", "wanda", "sheared", "magnitude", "random"
]

VariantName = Literal["masks_only", "coupled", "paper", "policy_gradient"]
"""Other settings of `learned`, as rows of their own."""

RewriteName = Literal[
    "greedy",
    "slicegpt",
    "depth",
    "svd_llm",
    "joint_rank_k",
    "mpo",
    "magnitude_2_4",
    "wanda_2_4",
    "sparsegpt_2_4",
    "dass_2_4",
]
"""Rivals that do more than drop dimensions."""


class InputError(ValueError):
    """Something the user can mend, told in one line: where, what, and the mend."""

    def __init__(self, what: str, *, flag: str, mend: str):
        super().__init__(f"{flag}: {what}; {mend}")
        self.what, self.flag, self.mend = what, flag, mend

    def __reduce__(self):  # crosses process boundaries in one piece
        return functools.partial(type(self), flag=self.flag, mend=self.mend), (self.what,)


@dataclass(frozen=True)
class TextConfig:
    """Where tokens come from."""

    text: tuple[Path, ...] = ()
    """Text to learn from: .txt, .raw, .jsonl, .parquet; any other file is read as plain text.
    Default: the embedded speeches."""
    text_field: str = "text"
    """Field of a .jsonl line or column of a .parquet file that holds the text."""
    weights: tuple[float, ...] = ()
    """How often a window is drawn from each file of --text, relative to the others. Default: the
    files are one text, so that each counts by its length."""
    mix: Literal["fixed", "dynamic"] = "fixed"
    """With --weights: keep them, or draw more often what the smaller model has lost most on
    (dynamic batch loading, arXiv 2310.06694)."""
    dataset: str = ""
    """A hub data set in place of --text, NAME:CONFIG or NAME:CONFIG:SPLIT, such as
    wikitext:wikitext-2-raw-v1 (split: train)."""
    eval_text: tuple[Path, ...] = ()
    """Text to measure perplexity on. Default: the last tenth of the learning text, which is then
    never learned from."""
    eval_dataset: str = ""
    """A hub data set in place of --eval-text, NAME:CONFIG or NAME:CONFIG:SPLIT (split: test)."""


@dataclass(frozen=True)
class EvalConfig:
    """How perplexity is measured."""

    context: int = 1024
    """Tokens of a window; the first token of a window is not predicted."""
    stride: int = 0
    """Tokens from one window to the next; 0 = context, no overlap. A token is scored once."""
    windows: int = 16
    """How many windows from the start of the text; 0 = all of it."""


@dataclass(frozen=True)
class ScoreConfig:
    """The calibration pass that scores every entry of every site."""

    calibration_sequences: int = 24
    """Sequences, each with a backward pass of its own."""
    calibration_length: int = 512
    """Tokens of a calibration sequence."""
    score_rounds: int = 0
    """Parts of the calibration, each at masks that the parts before it propose; 1 = all at the
    dense model; 0 = what measured best: 8 for --method fisher, 1 as the start of learning."""

    @property
    def tokens(self) -> int:
        """Of all calibration sequences."""
        return self.calibration_sequences * self.calibration_length


@dataclass(frozen=True)
class LearnConfig:
    """The mask-learning loop; the weights of the model stay frozen."""

    steps: int = 150
    """Optimiser steps."""
    length: int = 1024
    """Tokens of a learning window. Short ones adapt the masks to the learning text's vocabulary, at
    the cost of all other text (docs/experiment-log.md)."""
    batch: int = 1
    """Windows a step and process."""
    accumulate: int = 1
    """Batches a step whose gradients are averaged."""
    start: Literal["scores", "random"] = "scores"
    """Where the logits begin: at the Fisher scores, or at what the parametrisation draws."""
    parametrisation: Parametrisation = "logits"
    """What is trained: the logits themselves, the paper's hypernetwork, or its Linear heads on a
    fixed input (the paper's "w/o Bi-GRU"); the last two are added to the start."""
    estimator: Estimator = "projected"
    """How logits become masks with a gradient."""
    shift: float = 0.0
    """The constant c added to logits (the paper: 3)."""
    temperature: float = 0.5
    """The τ of the estimator's sigmoid."""
    constrained: bool = False
    """One mask of the residual stream for every site of every block but mlp_mid (the paper's
    S1 = S2 = S3 = S5)."""
    penalty: float = 0.0
    """The λ of |log(T(s)/(keep·T))|; 0 where the projection holds the budget."""
    learning_rate: float = 0.05
    """Peak step size on the logits, or on the hypernetwork's weights."""
    scale_rate: float = 0.01
    """Step size of a scale that every kept entry learns beside its mask, folded into the weights at
    export: it makes up for what has gone. 0 = none: the kept weights stay as they are. Not with
    policy_gradient."""
    distill: float = 0.0
    """Share of the loss that is the divergence from the original model instead of cross-entropy: a
    third more time; worse on text like the learning text, better on other text."""
    beta1: float = 0.9
    """AdamW's first moment."""
    beta2: float = 0.95
    """AdamW's second moment."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay (the paper: 0.05)."""
    schedule: Schedule = "cosine"
    """Cosine falls to a tenth of the peak at the last step."""
    checkpoint_every: int = 25
    """Steps between checkpoints; one is also written on SIGINT and SIGTERM."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """Run the blocks through torch.compile; auto does where there is a C++ compiler and steps
    enough to win its time back."""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, a third more time."""

    @property
    def learns_scales(self) -> bool:
        """Whether scales are learned, which takes a gradient through the model."""
        return self.scale_rate > 0 and self.estimator != "policy_gradient"


@dataclass(frozen=True)
class BudgetConfig:
    """What is held, where it is not block parameters."""

    budget: BudgetKind = "params"
    """What --keep (params) or --target (the rest) is a share of: block parameters, FLOPs a token of
    the linear layers, bytes of all weights, or the time of --workload, measured on this machine."""
    target: tuple[float, ...] = ()
    """Share of the dense model's FLOPs, bytes or time that stays, in (0, 1]; in place of --keep."""
    workload: Literal["prefill", "decode"] = "prefill"
    """Whose time --budget latency holds: a prompt, or one token after as many cached ones."""
    workload_length: int = 512
    """Tokens of that prompt or cache."""


@dataclass(frozen=True)
class ExportConfig:
    """How the smaller model is written."""

    align: int = 0
    """Widths are multiples of this. 0 = for `prune`, what `disp-llm doctor --measure` found best
    for the model on this machine or, where it was not run, 1 on a CPU and 64 on a GPU; for `export`
    and --resume, what the run has."""
    max_shard_size: str = "5GB"
    """Largest file of weights."""


@dataclass(frozen=True)
class MachineConfig:
    """Where it runs."""

    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the frozen weights; auto is bfloat16 where the hardware has it, else float32."""
    seed: int = 0
    """Of every random draw."""


@dataclass(frozen=True)
class PruneConfig:
    """Score, learn, export and evaluate: MODEL becomes one or more smaller model folders."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Hub id, local folder, or smollm2-135m (the embedded default)."""
    keep: tuple[float, ...] = (0.5,)
    """Share of block parameters that stays, in (0, 1]; several give several models of one run."""
    keep_range: tuple[float, ...] = ()
    """LOW HIGH: learn for every keep between them and measure the curve of perplexity against keep,
    as curve.json and curve.png in the run folder."""
    curve_points: int = 7
    """Sizes that are measured on that curve."""
    output_dir: Path = Path("run")
    """The run folder."""
    recipe: str = "default"
    """Name of a shipped recipe, or a TOML file; flags override it."""
    method: MethodName = "learned"
    """How masks are chosen."""
    sites: tuple[Site, ...] = ()
    """Where dimensions may be dropped; the other sites stay whole. Default: where the method drops
    them, the five sites of DISP-LLM or, for flap, taylor and wanda, mlp_mid and heads. mlp_mid
    alone gives a model that other formats can hold, such as GGUF. `heads`, added to the others,
    also drops KV heads with their queries: the KV cache shrinks, but vLLM cannot serve the
    result."""
    resume: bool = False
    """Go on where the run in --output-dir stopped."""
    json: bool = False
    """Print one JSON object on standard output."""
    text: TextConfig = field(default_factory=TextConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    scores: ScoreConfig = field(default_factory=ScoreConfig)
    learn: LearnConfig = field(default_factory=LearnConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)

    @property
    def shares(self) -> tuple[float, ...]:
        """The sizes that are to be written, as shares of what the budget holds."""
        return self.keep if self.budget.budget == "params" else self.budget.target

    @property
    def learned_shares(self) -> tuple[float, ...]:
        """The sizes that are learned for: these, and the ends of the range."""
        return tuple(dict.fromkeys((*self.shares, *self.keep_range)))

    @property
    def curve_shares(self) -> tuple[float, ...]:
        """The sizes on the curve, largest first."""
        if not self.keep_range:
            return ()
        low, high = self.keep_range
        steps = self.curve_points - 1
        return tuple(round(high - (high - low) * i / steps, 6) for i in range(steps + 1))


def resolved(config: Any) -> dict[str, Any]:
    """A configuration as plain TOML values; None never occurs, paths become text."""
    plain = dataclasses.asdict(config)

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(inner) for key, inner in value.items()}
        if isinstance(value, tuple | list):
            return [clean(inner) for inner in value]
        return str(value) if isinstance(value, Path) else value

    return clean(plain)


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    folder = resources.files("disp_llm") / "recipes"
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name: str) -> dict[str, Any]:
    """The tables of a shipped recipe or of a TOML file, over those of the shipped one that it names
    as its `base`.

    Raises:
        InputError: no such recipe or file, or not TOML.
    """
    try:
        if name.endswith(".toml"):
            return _on_its_base(tomllib.loads(Path(name).read_text()))
        if name in recipe_names():
            shipped = resources.files("disp_llm") / "recipes" / f"{name}.toml"
            return _on_its_base(tomllib.loads(shipped.read_text()))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(
            f"cannot read {name} ({error})", flag="--recipe", mend="mend the file"
        ) from error
    raise InputError(
        f"no recipe '{name}'" + nearest(name, recipe_names()),
        flag="--recipe",
        mend=f"use one of {', '.join(recipe_names())}, or a file that ends in .toml",
    )


def _on_its_base(tables: dict[str, Any]) -> dict[str, Any]:
    base = tables.pop("base", None)
    if base is None:
        return tables
    if base not in recipe_names():
        raise InputError(
            f"base '{base}' is no shipped recipe" + nearest(str(base), recipe_names()),
            flag="--recipe",
            mend=f"use one of {', '.join(recipe_names())}",
        )
    whole = load_recipe(base)
    for key, value in tables.items():
        whole[key] = whole.get(key, {}) | value if isinstance(value, dict) else value
    return whole


def apply_recipe(config: Any, tables: dict[str, Any], path: str = "") -> Any:
    """A copy of a configuration with the values of a recipe's tables.

    Raises:
        InputError: a key that no field has, or a value of the wrong type.
    """
    known = {entry.name: getattr(config, entry.name) for entry in dataclasses.fields(config)}
    hints = get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for key, value in tables.items():
        if key not in known:
            raise InputError(
                f"unknown key '{path}{key}'" + nearest(key, list(known)),
                flag="--recipe",
                mend=f"use keys of {', '.join(known)}",
            )
        old = known[key]
        if isinstance(value, dict) and dataclasses.is_dataclass(old):
            changes[key] = apply_recipe(old, value, f"{path}{key}.")
        else:
            try:
                changes[key] = _as_hinted(value, hints[key])
            except TypeError as error:
                raise InputError(
                    f"'{path}{key}' is {value!r}", flag="--recipe", mend=f"give {error}"
                ) from error
    return dataclasses.replace(config, **changes)


def _as_hinted(value: Any, hint: Any) -> Any:
    """A value of a TOML file as a field of that type holds it.

    Raises:
        TypeError: it is another one; the message says what it should be.
    """
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise TypeError(f"one of {', '.join(get_args(hint))}")
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_as_hinted(item, get_args(hint)[0]) for item in value)
    if hint is float and type(value) is int:
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if type(value) is not hint:
        kind = "list" if get_origin(hint) is tuple else getattr(hint, "__name__", str(hint))
        raise TypeError(f"{'an' if kind == 'int' else 'a'} {kind}")
    return value


def nearest(word: str, words: list[str]) -> str:
    """' (nearest: X)' where a known word is near, else nothing."""
    near = difflib.get_close_matches(word, words, n=1)
    return f" (nearest: {near[0]})" if near else ""


def size_name(settings: BudgetConfig, share: float) -> str:
    """`0.6`, `bytes-0.6` or `latency-prefill-512-0.6`: what a size of a run is called in results
    and file names."""
    if settings.budget == "params":
        return f"{share:g}"
    timed = settings.budget == "latency"
    work = f"{settings.workload}-{settings.workload_length}-" if timed else ""
    return f"{settings.budget}-{work}{share:g}"
