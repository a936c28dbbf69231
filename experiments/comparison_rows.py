"""Committed comparisons -> the rows of tables that set methods side by side."""

import statistics
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from committed import read_committed
from test_suite import on_test_suite

HERE = Path(__file__).parent
BASELINES = HERE / "baselines"
AS_USED = "tokens-12k.json"
"""The comparison of each method with the text that it is used with."""
SIZES = ("0.8", "0.7", "0.5")
"""The sizes that README.md compares."""
ENDS = (SIZES[0], SIZES[-1])
"""Those of tables with several figures of each."""
FIRST_TOKENS = 16 * 1023
"""Tokens of the first 16 windows of 1,024 that are predicted."""
WHOLE = "WikiText-2, whole"
"""The WikiText-2 test text in windows of 2,048, beside the first windows of the suite."""


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


def compared(name: str) -> dict | None:
    """A committed comparison, if it has been run. Seconds that `tables.toml` says to be of another
    processor, of which an old row does not tell, are left out: a column of times is of one."""
    file = BASELINES / name
    if not file.exists():
        return None
    result = read_committed(file)
    (told,) = (one for one in page_settings()["comparison"] if one["file"] == name)
    elsewhere = told.get("seconds_elsewhere", [])
    for row in result["rows"]:
        row["seconds"] = None if row["method"] in elsewhere else row["seconds"]
    return result


@dataclass(frozen=True)
class Figure:
    """A figure of a row: of several seeds their mean."""

    mean: float
    error: float
    """Its standard error; of several seeds their mean."""
    ends: tuple[float, float] | None = None
    """The least and the largest, where there are several seeds."""

    @classmethod
    def of(cls, found: list[dict], name: str) -> "Figure | None":
        """Of the models of all seeds, those that have it."""
        values = [model[name] for model in found if name in model]
        if not values:
            return None
        error = statistics.mean(model[f"{name}_stderr"] for model in found if name in model)
        ends = (min(values), max(values)) if len(values) > 1 else None
        return cls(statistics.mean(values), error, ends)

    def said(self, digits: int) -> str:
        """`53.1`, or of several seeds `53.1 (52.0 to 54.8)`."""
        if self.ends is None:
            return f"{self.mean:.{digits}f}"
        low, high = self.ends
        return f"{self.mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


Figures = dict[str, Figure]
"""By size, keys as in `SIZES`."""


@dataclass(frozen=True)
class Row:
    """A method in the tables of README.md."""

    name: str
    tokens: tuple[int, int]
    """The fewest and the most that any of its sizes has read."""
    perplexity: Figures
    """Over the first 16 windows of the WikiText-2 test text."""
    texts: dict[str, Figures]
    """Over other texts, where that was measured."""
    general: Figures
    """The general ratio, where that was measured."""
    seeds: int
    """Of how many each figure is the mean."""

    @property
    def plain_name(self) -> str:
        """The name without marks of Markdown."""
        return self.name.replace("*", "").replace("`", "")

    @property
    def tokens_said(self) -> str:
        """`89 k`, or of sizes that read more the smaller they are `997 k to 2.5 M`."""
        return said_tokens(self.tokens)

    @property
    def ours(self) -> bool:
        """Whether this package made it."""
        return "disp-llm" in self.name


def original_of(experiment: str) -> dict:
    """The original as an experiment has measured it first, with all its texts."""
    results = read_committed(HERE / "results" / f"{experiment}.json")
    return _with_other_texts(results[0]["original"])


def variants_of(told: dict, folder: Path = HERE / "results") -> list[dict]:
    """The results of the variants that `told` names, of its experiment."""
    return [result for result in results_of(told, folder) if result["name"] in names_in(told)]


def names_in(told: dict) -> list[str]:
    """The variants that `told` names: one, or several."""
    return told["variant"] if isinstance(told["variant"], list) else [told["variant"]]


def results_of(told: dict, folder: Path = HERE / "results") -> list[dict]:
    """The results of the experiment that `told` names, by the suite that it names: that which chose
    unless it is `test`."""
    experiment = told["experiment"]
    results = read_committed(folder / f"{experiment}.json")
    return on_test_suite(experiment, results, folder) if told.get("suite") == "test" else results


def domain_rows() -> list[Row]:
    """What learned from WikiText-2, in the order of perplexity at the smallest size."""
    rows = [_row(told) for told in page_settings()["domain"]["row"]]
    return sorted(rows, key=lambda row: row.perplexity[SIZES[-1]].mean)


def mix_rows(table: str) -> list[Row]:
    """The rows of a table of README.md on new documents of the mix, the least loss first."""
    rows = [_row(told) for told in page_settings()[table]["row"]]
    return sorted(rows, key=lambda row: row.general[SIZES[-1]].mean)


def _row(told: dict) -> Row:
    """A row from the experiment that `told` names: one of its variants, or several, of a size or of
    a seed each; or all rows of a method."""
    models = _models(told)
    # With what was read by the run that a recovery began with.
    begun = _models(told["begun"])[0]["tokens_seen"] if "begun" in told else 0
    read = [model["tokens_seen"] + begun for model in models]
    seeds: dict[str, list[dict]] = {}
    for model in models:
        size = f"{model.get('keep_asked', round(model['keep'], 2)):g}"
        seeds.setdefault(size, []).append(model)

    def figures(name: str, text: str = "") -> Figures:
        """A figure of every size that has it, over a text if one is named."""
        told_by = {
            size: [model.get("texts", {}).get(text, {}) if text else model for model in found]
            for size, found in seeds.items()
        }
        by_size = {size: Figure.of(found, name) for size, found in told_by.items()}
        return {size: figure for size, figure in by_size.items() if figure is not None}

    texts = {text for model in models for text in model.get("texts", {})}
    return Row(
        name=told["name"],
        tokens=(min(read), max(read)),
        perplexity=figures("perplexity"),
        texts={text: figures("perplexity", text) for text in texts},
        general=figures("general_ratio"),
        seeds=max(map(len, seeds.values())),
    )


def _models(told: dict) -> list[dict]:
    """The models of all seeds, each with the tokens that were read for it."""
    if "method" in told:
        return [row for result in results_of(told) for row in _of_method(result, told["method"])]
    return [
        model | {"tokens_seen": result["tokens_seen"] + result.get("tokens_before", 0)}
        for result in variants_of(told)
        for model in result["models"]
    ]


def _of_method(comparison: dict, method: str) -> list[dict]:
    return [row for row in rows_of(comparison) if row["method"] == method]


def rows_of(comparison: dict) -> list[dict]:
    """The rows of a comparison that have not failed, with all the texts that they were measured on.
    Where it measured on the whole WikiText-2 test text, that is one of them, and the first windows,
    which its suite has, stand in its place."""
    made = [row for row in comparison["rows"] if row["error"] is None]
    first = comparison["original"]["tokens"] == FIRST_TOKENS
    return [_with_other_texts(row) if first else _with_whole(row) for row in made]


def _with_other_texts(row: dict) -> dict:
    return row | {"texts": row.get("texts", {}) | row.get("other_texts", {})}


def _with_whole(row: dict) -> dict:
    names = ("perplexity", "perplexity_stderr", "window_losses")
    first = row["texts"]["WikiText-2"] | {"window_losses": row["texts"]["WikiText-2"]["losses"]}
    texts = row["texts"] | {WHOLE: {name: row[name] for name in names}}
    return row | {"texts": texts} | {name: first[name] for name in names}
