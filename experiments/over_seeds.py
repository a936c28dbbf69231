"""Figures over seeds: means, and pairs of the same seed with their error.

A pair is a log ratio of two models of one seed. Over n seeds the mean has the standard error
s / √n, and t = mean / error follows Student's distribution with n − 1 degrees of freedom.
"""

import math
import re
import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Paired:
    """How many times another's a figure is, over seeds."""

    ratio: float
    """The geometric mean."""
    error: float | None = None
    """Its standard error; None of a single seed."""
    seeds: int = 1

    @classmethod
    def of(cls, figures: list[float], others: list[float]) -> "Paired":
        """Of figures of as many seeds, in the same order."""
        logs = [math.log(one / other) for one, other in zip(figures, others, strict=True)]
        ratio = math.exp(statistics.fmean(logs))
        if len(logs) < 2:
            return cls(ratio)
        return cls(ratio, ratio * statistics.stdev(logs) / math.sqrt(len(logs)), len(logs))

    @property
    def t(self) -> float:
        """Student's t of the log ratio, with `seeds − 1` degrees of freedom."""
        assert self.error is not None
        return math.log(self.ratio) * self.ratio / self.error if self.error else math.inf

    def __str__(self) -> str:
        """`×1.031 ± 0.006`; of a single seed without an error."""
        return f"×{self.ratio:.3f}" + (f" ± {self.error:.3f}" if self.error is not None else "")

    @property
    def said(self) -> str:
        """`×1.031 ± 0.006, t 5.1`; the ratio alone of fewer than three seeds, which do not tell how
        far seeds lie apart."""
        enough = self.error is not None and self.seeds > 2
        return f"{self}, t {self.t:.1f}" if enough else f"×{self.ratio:.3f}"


BySeed = dict[int, float]


def by_name(results: list[dict]) -> dict[str, dict[float, BySeed]]:
    """The general ratio of every variant, by its name without keep and seed, by these two."""
    found: dict[str, dict[float, BySeed]] = {}
    for result in results:
        if "error" in result:
            continue
        of_name = found.setdefault(re.sub(r"(, keep [\d.]+)?, seed \d+$", "", result["name"]), {})
        for model in result["models"]:
            of_name.setdefault(model["keep_asked"], {})[result["seed"]] = model["general_ratio"]
    return found


def paired(figures: BySeed, others: BySeed) -> Paired | None:
    """Over the seeds that both have; None where there is none."""
    seeds = sorted(figures.keys() & others.keys())
    if not seeds:
        return None
    return Paired.of([figures[seed] for seed in seeds], [others[seed] for seed in seeds])
