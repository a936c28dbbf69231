"""The names that settings choose between: sites, estimators, budgets, methods.

A method is a file of `disp_llm/methods` (or `methods/baselines`) of the same name, an entry point
of an installed package (group `disp_llm.methods`), or what `disp_llm.methods.register` was given:
its name is known here without importing it.
"""

from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Literal, get_args

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

BudgetKind = Literal["params", "total", "flops", "bytes", "memory", "latency", "active"]

Site = Literal[
    "attn_in", "attn_out", "mlp_in", "mlp_mid", "mlp_out", "heads", "experts", "attention", "mlp"
]

SITES: tuple[Site, ...] = ("attn_in", "attn_out", "mlp_in", "mlp_mid", "mlp_out")
"""S1 to S5 of the paper, in the order in which a block's entries lie in the flat vector."""

HEADS: Site = "heads"
"""A sixth site, only where it is asked for: an entry is a KV head with the queries that read it."""

EXPERTS: Site = "experts"
"""Another, only where it is asked for: an entry is an expert of a mixture with its row of the
router."""

ATTENTION: Site = "attention"
MLP: Site = "mlp"
BRANCHES: tuple[Site, ...] = (ATTENTION, MLP)
"""Two more, only where they are asked for: the one entry of each is the whole branch of a block."""

BRANCH_OF: dict[Site, Site] = {
    "attn_in": ATTENTION,
    "attn_out": ATTENTION,
    "mlp_in": MLP,
    "mlp_mid": MLP,
    "mlp_out": MLP,
    HEADS: ATTENTION,
    EXPERTS: MLP,
    ATTENTION: ATTENTION,
    MLP: MLP,
}
"""The branch that a site lies in: without it, none of the site's entries is there."""

LearningRateSchedule = Literal["cosine", "linear", "constant"]

Template = Literal["auto", "chat", "plain"]

Tracker = Literal["none", "tensorboard", "trackio", "wandb"]

Resume = Annotated[bool | Literal["auto"], tyro.conf.arg(metavar="[auto]")]
"""Whether to go on with a run; "auto" = if there is one."""

IN_TIME = "latency"
"""The setting of `learned` whose sizes are shares of the original's time."""

VARIANTS = (
    *("masks_only", "masks_and_scales", "domain", "coupled", IN_TIME),
    *("paper", "policy_gradient"),
)
"""Other settings of the method `learned`, which `compare` shows as rows of their own."""

OURS = ("learned", "masks_only", "masks_and_scales", "domain", "coupled", IN_TIME)
"""What this package recommends, with one thing changed or none; all other rows are of others."""

DENSE = "dense"
"""The original as a row of a comparison: in the dtype of the run, and quantised."""

WeightKind = Literal["int8", "int4"]

WEIGHT_KINDS: tuple[WeightKind, ...] = get_args(WeightKind)
"""What the weights of blocks can be quantised to, for a comparison."""

SELF, SPEECHES, GENERAL = "self", "speeches", "general"

NAMED_TEXTS = (SELF, SPEECHES, GENERAL)
"""Texts that `text` knows by a name: the model's own words, the embedded speeches, and a mixture of
hub data sets."""


def named_path(word: str) -> Path:
    """A path as it was written, where `self` is the name of a text and `./self` a file."""
    path = Path(word)
    return path if word in NAMED_TEXTS or str(path) not in NAMED_TEXTS else path.absolute()


def is_mixture(path: Path) -> bool:
    """Whether a name of `text` is one of a mixture: the shipped one, or a TOML file."""
    return str(path) == GENERAL or path.suffix.lower() == ".toml"


TextPath = Annotated[
    Path,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: named_path(words[0]),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    ),
]
"""A file, a folder, or a text that is known by its name."""

METHODS_FOLDER = Path(__file__).parents[1] / "methods"

TABLE_ORDER = (
    *("learned", "fisher", "taylor", "flap", "wanda", "sheared"),
    *("ddp", "grasprune", "gisp", "reap", "magnitude", "random"),
    *("greedy", "tyr", "slicegpt", "depth", "svd_llm", "joint_rank_k", "mpo"),
    *("magnitude_2_4", "wanda_2_4", "sparsegpt_2_4", "dass_2_4"),
)
"""In which order tables show methods and baselines; those that are not named here come last."""

STRUCTURES = ("greedy", "tyr", "depth")
"""Baselines whose choice of what is kept can be said by masks, so that learning can begin there."""

STEPPING = ("learned", "sheared", "ddp", "grasprune")
"""Methods of ours that take steps of learning."""

BY_GRADIENTS = ("fisher", "taylor", "gisp")
"""Methods of ours whose scores take a backward pass."""

IN_ROUNDS = ("learned", "fisher", "gisp")
"""Methods of ours that score in rounds."""

UNREAD = ("sheared", "ddp", "magnitude", "random")
"""Methods of ours that read no calibration sequences."""

PLUGINS = "disp_llm.methods"
"""The group of entry points through which another package adds methods."""

registered_methods: list[str] = []
"""Names that `disp_llm.methods.register` was given in this process."""


def own_methods() -> tuple[str, ...]:
    """Names of the methods of this package, that of the paper and of our default first."""
    return _files(METHODS_FOLDER)


def mask_methods() -> tuple[str, ...]:
    """Names of all methods that choose masks: ours, those of other packages, registered ones."""
    added = [entry.name for entry in entry_points(group=PLUGINS)]
    return tuple(dict.fromkeys([*own_methods(), *added, *registered_methods]))


def baseline_names() -> tuple[str, ...]:
    """Names of the baselines, which do more than drop dimensions."""
    return _files(METHODS_FOLDER / "baselines")


def compared_methods() -> tuple[str, ...]:
    """Everything that `compare` has a row for."""
    return (*mask_methods(), *VARIANTS, *baseline_names())


def _files(folder: Path) -> tuple[str, ...]:
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    known = [name for name in TABLE_ORDER if name in names]
    return tuple(dict.fromkeys([*known, *names]))
