"""The figures behind the card of an exported folder, `card.json`: what others may know of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disp_llm.config.names import Bits, name_of
from disp_llm.config.schema import Amount, Count, Positive, as_type
from disp_llm.runs.files import read_json
from disp_llm.runs.ownership import FACTS
from disp_llm.runs.results import Hardware, OriginalResult, SizeResult, Source, as_json
from disp_llm.runs.scores import Finite, Perplexity
from disp_llm.runs.sums import CHANGED_FOLDER

CARD = "README.md"

UNTOLD = ("folder", "converted", "sample", "prompt", "system")
"""What the card leaves out of what it tells: where things lie, what the text says, and the
operating system."""

BEHIND = ("window_losses", "window_tokens")
"""What it leaves out too: the losses behind a perplexity, without which this can be read."""


def facts_of(size: SizeResult, result: dict[str, Any]) -> dict[str, Any]:
    """What others may know of a size and its run's `result.json`: no path, and nothing of the text
    that it read."""
    told = {key: result[key] for key in Told.__dataclass_fields__ if key in result}
    told = {key: _without(part) if isinstance(part, dict) else part for key, part in told.items()}
    told["source"] = result["source"] | {"model": name_of(result["source"]["model"])}
    base = result["source"].get("base_model", "")
    if base != name_of(base):  # a path names no repository of the hub
        told["source"]["base_model"] = ""
    return {"figures": _without(as_json(size)), "result": told}


def _without(figures: dict[str, Any]) -> dict[str, Any]:
    told = {key: value for key, value in figures.items() if key not in UNTOLD}
    if "measured" in told:
        measured = told["measured"].items()
        told["measured"] = {key: value for key, value in measured if key not in BEHIND}
    return told


def read_facts(folder: str | Path) -> dict[str, Any]:
    """What the run knew that wrote the folder's card; empty where there is no such file."""
    path = Path(folder) / FACTS
    return facts_in(path)["result"] if path.exists() else {}


def size_of(folder: Path) -> str:
    """Which size of its run an exported folder is, by its name there; empty without a card."""
    path = folder / FACTS
    return facts_in(path)["figures"]["size"] if path.exists() else ""


@dataclass(frozen=True)
class Recovered:
    """What training after pruning did."""

    distill: Amount
    tokens_seen: Count
    text: str
    eval_text: str
    """What the figures of the model are measured on since."""
    eval_text_sha256: str
    before: Positive
    """Perplexity before it."""
    command: str
    original: Perplexity | None = None
    """Of the original on that text, where it was measured."""
    before_general_ratio: Positive | None = None
    before_kept: Finite | None = None
    """On the suite, where there is one."""
    tokens_before: Count = 0
    """That earlier recoveries had trained the weights on with which this one began."""
    weights_from: str = ""
    """The larger size that these weights are from; "" = from none."""
    bits: Bits = "as-is"
    """That weights were rounded to while they trained and as they were measured."""


@dataclass(frozen=True)
class Quantised:
    """How the linear layers of the blocks are stored."""

    how: str
    layers: Count


@dataclass(frozen=True)
class Told:
    """What the card tells of a run's result; the folder carries nothing else of it."""

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
        """What the figures of the model are measured on."""
        return self.recovered.eval_text if self.recovered else self.source["eval_text"]


@dataclass(frozen=True)
class Facts:
    """All that `card.json` holds, but for what the card leaves out."""

    figures: SizeResult
    result: Told


def facts_in(path: Path) -> dict[str, Any]:
    """The values of such a file, checked."""
    values = read_json(path, CHANGED_FOLDER)
    typed_facts(values, str(path))
    return values


def typed_facts(values: dict[str, Any], path: str) -> Facts:
    """The same as an object."""
    return as_type(values, Facts, field=path, hint=CHANGED_FOLDER)
