"""The names that settings choose between: sites, estimators, budgets, texts."""

import os
import re
from pathlib import Path
from typing import Literal

Estimator = Literal[
    "projected",
    "reinmax",
    "gumbel_soft",
    "policy_gradient",
]

Parametrisation = Literal["logits", "hypernetwork"]

BudgetKind = Literal["params", "total", "flops", "bytes", "memory", "latency", "active"]

Site = Literal[
    "attn_in", "attn_out", "mlp_in", "mlp_mid", "mlp_out", "heads", "experts", "attention", "mlp"
]

SITES: tuple[Site, ...] = ("attn_in", "attn_out", "mlp_in", "mlp_mid", "mlp_out")
"""S1 to S5 of the paper, in the order in which a block's entries lie in the flat vector."""

HEADS: Site = "heads"
"""A sixth site: an entry is a KV head with the queries that read it."""

COUPLED: tuple[Site, ...] = ("mlp_mid", HEADS)
"""What can go without a cut of the residual stream: MLP channels and KV heads."""

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

Bits = Literal["as-is", "int8", "int4"]

LearningRateSchedule = Literal["cosine", "linear", "constant"]

Template = Literal["auto", "chat", "plain"]

Tracker = Literal["none", "tensorboard", "trackio", "wandb"]

Resume = bool | Literal["auto"]
"""Whether to go on with a run; "auto" = if there is one."""

Format = Literal["folder", "plain", "gguf", "nemotron-nas", "int8", "int4"]
"""What an exported folder can be converted to; each is a module of `disp_llm.exporter.formats`."""

Engine = Literal["transformers", "vllm", "llama.cpp", "nemotron-nas", "anywhere"]
"""What a model can be made for; what each can run stands in `disp_llm.config.engines`."""

WeightKind = Literal["int8", "int4"]

SELF, SPEECHES, GENERAL = "self", "speeches", "general"

NAMED_TEXTS = (SELF, SPEECHES, GENERAL)
"""Texts that `text` knows by a name: what the model writes, the embedded speeches, and a mixture of
hub data sets."""


def named_path(word: str) -> Path:
    """A path as it was written, where `self` is the name of a text and `./self` a file."""
    path = Path(word)
    return path if word in NAMED_TEXTS or str(path) not in NAMED_TEXTS else path.absolute()


def is_mixture(path: Path) -> bool:
    """Whether a name of `text` is one of a mixture: the shipped one, or a TOML file."""
    return str(path) == GENERAL or path.suffix.lower() == ".toml"


HUB_NAME = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}(@[\w./-]+)?(:[\w.-]+)*")
"""`org/name`, also `org/name@revision`, and of a data set `org/name:config:split`."""


def is_on_hub(name: str) -> bool:
    """Whether a name has the form of one on the hub, and nothing of that name lies here."""
    return bool(HUB_NAME.fullmatch(name)) and not os.path.exists(name.partition(":")[0])


def name_of(place: str) -> str:
    """A name on the hub as it is, a path by its last part: what is shared names no folders."""
    return place if is_on_hub(place) else Path(place).name or place
