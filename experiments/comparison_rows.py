"""Committed comparisons -> the rows of tables that set methods side by side."""

import statistics
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from committed import read_committed
from test_suite import on_test_suite, size_of

HERE = Path(__file__).parent
BASELINES = HERE / "baselines"
AS_USED = "tokens-12k.json"
"""The comparison of each method with the text that it is used with."""
SIZES = ("0.8", "0.7", "0.5")
"""The sizes that README.md compares."""


def figure(model: dict) -> str:
    """A perplexity with its standard error."""
    return f"{model['perplexity']:.2f} ± {model['perplexity_stderr']:.2f}"


def ratio(model: dict) -> str:
    """A general ratio with its standard error."""
    return f"×{model['general_ratio']:.3f} ± {model['general_ratio_stderr']:.3f}"


WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def said_tokens(counts: Sequence[int]) -> str:
    """The least and the most of them."""
    ends = (min(counts), max(counts))
    said = (f"{n / 1e3:.0f} k" if n < 1e6 else f"{n / 1e6:.1f} M" for n in ends)
    return " to ".join(dict.fromkeys(said))


def span(values: Sequence[float], digits: int = 0) -> str:
    """The least and the most of them."""
    return " to ".join(dict.fromkeys(f"{v:.{digits}f}" for v in (min(values), max(values))))


def page_settings() -> dict:
    """The words around the comparisons, and what README.md takes from them."""
    return tomllib.loads((BASELINES / "tables.toml").read_text())


def compared(name: str) -> dict:
    """A committed comparison. Seconds that `tables.toml` says to be of another processor, of which
    an old row does not tell, are left out: a column of times is of one."""
    result = read_committed(BASELINES / name)
    (told,) = (one for one in page_settings()["comparison"] if one["file"] == name)
    elsewhere = told.get("seconds_elsewhere", [])
    for row in result["rows"]:
        row["seconds"] = None if row["method"] in elsewhere else row["seconds"]
    return result


@dataclass(frozen=True)
class Row:
    """A method in the table of README.md."""

    name: str
    tokens: tuple[int, int]
    """The fewest and the most that any of its sizes has read."""
    general: dict[str, float]
    """The general ratio of every size, the mean over seeds."""
    seeds: int
    """Of how many each figure is the mean."""

    @property
    def tokens_said(self) -> str:
        """`89 k`, or of sizes that read more the smaller they are `997 k to 2.5 M`."""
        return said_tokens(self.tokens)

    @property
    def ours(self) -> bool:
        """Whether this package made it."""
        return "disp-llm" in self.name


def variants_of(told: dict, folder: Path = HERE / "results") -> list[dict]:
    """The results of the variants that `told` names, of its experiment, by the suite that it names:
    that which chose unless it is `test`."""
    experiment = told["experiment"]
    results = read_committed(folder / f"{experiment}.json")
    if told.get("suite") == "test":
        results = on_test_suite(experiment, results, folder)
    return [result for result in results if result["name"] in told["variant"]]


def mix_rows() -> list[Row]:
    """The rows of README.md's table, the least loss first."""
    rows = [_row(told) for told in page_settings()["general"]["row"]]
    return sorted(rows, key=lambda row: row.general[SIZES[-1]])


def _row(told: dict) -> Row:
    """A row from the variants that `told` names, of a size or of a seed each."""
    results = variants_of(told)
    read = [result["tokens_seen"] for result in results]
    ratios: dict[str, list[float]] = {}
    for model in (model for result in results for model in result["models"]):
        ratios.setdefault(f"{size_of(model):g}", []).append(model["general_ratio"])
    return Row(
        name=told["name"],
        tokens=(min(read), max(read)),
        general={size: statistics.mean(found) for size, found in ratios.items()},
        seeds=max(map(len, ratios.values())),
    )
