"""The figures behind an exported folder's card, `card.json`: what others may know of the run."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disp_llm.config.names import Bits, name_of
from disp_llm.config.parts import PerplexityConfig
from disp_llm.config.schema import Amount, Count, Positive, as_type
from disp_llm.runs.files import read_json
from disp_llm.runs.ownership import FACTS
from disp_llm.runs.results import Hardware, OriginalResult, SizeResult, Source, as_json
from disp_llm.runs.scores import Finite, Perplexity
from disp_llm.runs.sums import CHANGED_FOLDER

CARD = "README.md"

UNTOLD = ("folder", "converted", "sample", "prompt", "system")
"""Keys that the card leaves out: places of files, content of texts, and the operating system."""

BEHIND = ("window_losses", "window_tokens")
"""Keys that it also leaves out, below `measured`: losses of single windows behind a perplexity."""


def facts_of(size: SizeResult, result: dict[str, Any]) -> dict[str, Any]:
    """Returns what others may know of a size and its run's `result.json`: no paths, and nothing of
    the text that the run read."""
    told = {key: result[key] for key in Told.__dataclass_fields__ if key in result}
    told = {key: _without(part) if isinstance(part, dict) else part for key, part in told.items()}
    told["source"] = result["source"] | {"model": name_of(result["source"]["model"])}
    base = result["source"].get("base_model", "")
    if base != name_of(base):  # a path is no repository of the hub
        told["source"]["base_model"] = ""
    return {"figures": _without(as_json(size)), "result": told}


def _without(figures: dict[str, Any]) -> dict[str, Any]:
    told = {key: value for key, value in figures.items() if key not in UNTOLD}
    if "measured" in told:
        measured = told["measured"].items()
        told["measured"] = {key: value for key, value in measured if key not in BEHIND}
    return told


def read_facts(folder: str | Path) -> dict[str, Any]:
    """Returns the figures of the run that wrote the folder's `card.json`; empty if it has none."""
    path = Path(folder) / FACTS
    return facts_in(path)["result"] if path.exists() else {}


def size_of(folder: Path) -> str:
    """Returns the name of an exported folder's size in its run; empty without a `card.json`."""
    path = folder / FACTS
    return facts_in(path)["figures"]["size"] if path.exists() else ""


def tokens_measured(folder: str | Path) -> int:
    """Returns how many tokens were to be measured on when a folder or its original was measured, at
    most: a model of few positions reads shorter windows than were asked for. 0 without a card."""
    path = Path(folder) / FACTS
    if not path.exists():
        return 0
    facts = typed_facts(read_json(path, CHANGED_FOLDER), str(path))
    found = filter(None, (facts.result.original.measured, facts.figures.measured))
    return max(
        math.ceil(one.tokens / max(one.window - 1, 1)) * max(one.window, PerplexityConfig.context)
        for one in found
    )


@dataclass(frozen=True)
class Recovered:
    """Training after pruning, and its results."""

    distill: Amount
    tokens_seen: Count
    text: str
    eval_text: str
    """Text that the model's figures are measured on after training."""
    eval_text_sha256: str
    before: Positive
    """Perplexity before training."""
    command: str
    original: Perplexity | None = None
    """Perplexity of the original on `eval_text`; None if not measured."""
    before_general_ratio: Positive | None = None
    before_kept: Finite | None = None
    """Scores on the suite before training, like the ratio above; None without a suite."""
    tokens_before: Count = 0
    """Tokens on which earlier recoveries had trained the weights that this one began with."""
    weights_from: str = ""
    """Larger size that the initial weights are from; "" = none."""
    bits: Bits = "as-is"
    """Grid to which weights were rounded during training and measurement."""


@dataclass(frozen=True)
class Quantised:
    """How the linear layers of the blocks are stored."""

    how: str
    layers: Count


@dataclass(frozen=True)
class Told:
    """The part of a run's result that the card tells; the folder carries nothing else of it."""

    original: OriginalResult
    source: Source
    versions: dict[str, str]
    tokens_seen: Count
    command: str
    hardware: Hardware
    recovered: Recovered | None = None
    quantised: Quantised | None = None

    def __post_init__(self) -> None:
        if "disp-llm" not in self.versions:
            raise ValueError("has no version of disp-llm")

    @property
    def eval_text(self) -> str:
        """Text that the model's figures are measured on."""
        return self.recovered.eval_text if self.recovered else self.source["eval_text"]


@dataclass(frozen=True)
class Facts:
    """Content of `card.json`; fields that the card leaves out have their defaults."""

    figures: SizeResult
    result: Told


def facts_in(path: Path) -> dict[str, Any]:
    """Reads and checks the values of a `card.json`."""
    values = read_json(path, CHANGED_FOLDER)
    typed_facts(values, str(path))
    return values


def typed_facts(values: dict[str, Any], path: str) -> Facts:
    """Returns these values as an object."""
    return as_type(values, Facts, field=path, hint=CHANGED_FOLDER)
