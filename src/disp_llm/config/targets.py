"""Sizes as they are asked for: a share of what the original has, or an absolute with its unit, such
as 6GB, 80ms or 700M."""

import math
import re
from dataclasses import dataclass
from typing import get_args

from disp_llm.config.errors import InputError
from disp_llm.config.names import BudgetKind

BYTES, PARAMETERS, SECONDS = "bytes", "parameters", "seconds"

UNITS: dict[str, tuple[str, float]] = {
    "MB": (BYTES, 1e6),
    "MiB": (BYTES, 2.0**20),
    "GB": (BYTES, 1e9),
    "GiB": (BYTES, 2.0**30),
    "TB": (BYTES, 1e12),
    "ms": (SECONDS, 1e-3),
    "s": (SECONDS, 1.0),
    "M": (PARAMETERS, 1e6),
    "B": (PARAMETERS, 1e9),
}
"""What each unit counts, and how much of it it is."""

COUNTED: dict[BudgetKind, str] = {
    "total": PARAMETERS,
    "bytes": BYTES,
    "memory": BYTES,
    "latency": SECONDS,
}
"""What budgets count that people state as absolutes; an amount alone is of the first that counts
it. `active` and `flops` are no such: what is said of a model elsewhere counts its embeddings, or
its attention, too."""

EXAMPLES = {BYTES: "6GB", SECONDS: "80ms", PARAMETERS: "700M"}

SAID = re.compile(r"((?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?)\s*([a-z]*)", re.IGNORECASE)
"""A number, and its unit if it has one."""

LARGEST = 1e18
"""Bytes, parameters or seconds that can be asked for."""

DIGITS = 4
"""Of a figure that messages state."""


@dataclass(frozen=True)
class Target:
    """How much may be left."""

    amount: float
    unit: str = ""
    """One of `UNITS`; "" = the amount is a share of the original's."""

    @classmethod
    def of(cls, said: float | str) -> "Target":
        """Reads a setting; refuses what is no number, or has an unknown unit."""
        if not isinstance(said, str):
            return cls(said)
        found = SAID.fullmatch(said.strip())
        units = {unit.lower(): unit for unit in UNITS} | {"": ""}
        if found is None or found[2].lower() not in units:
            raise InputError(
                f"'{said}' is neither a share nor a number with a unit that is known",
                field="fit",
                hint=f"give a number in (0, 1], or one such as {', '.join(EXAMPLES.values())}",
            )
        target = cls(float(found[1]), units[found[2].lower()])
        if target.unit and target.value > LARGEST:
            hint = f"give one such as {EXAMPLES[target.counts]}"
            raise InputError(f"{target} is too large", field="fit", hint=hint)
        return target

    def __str__(self) -> str:
        return f"{self.amount:.15g}{self.unit}"

    @property
    def name(self) -> str:
        """What results and file names call it."""
        return str(self) if self.unit else f"{self.amount:g}"

    @property
    def counts(self) -> str:
        """What its unit counts."""
        return UNITS[self.unit][0] if self.unit else "shares"

    @property
    def value(self) -> float:
        """How many bytes, seconds or parameters an absolute is."""
        return self.amount * UNITS[self.unit][1]

    def is_same_as(self, other: "Target") -> bool:
        """Whether both are one amount, in whatever units."""
        if not (self.unit and other.unit):
            return self == other
        return self.counts == other.counts and math.isclose(self.value, other.value)

    def like(self, value: float, at_least: bool = False) -> str:
        """So many bytes, seconds or parameters in this unit, to a few digits; rounded up where it
        is the least that can be asked for."""
        return str(Target(rounded(value / UNITS[self.unit][1], DIGITS, at_least), self.unit))


def rounded(amount: float, digits: int, up: bool = False) -> float:
    """An amount above 0 in so many digits; `up`: no less than it is."""
    step = 10.0 ** (math.floor(math.log10(amount)) + 1 - digits)
    whole = math.ceil(amount / step) if up else round(amount / step)
    return float(f"{whole * step:.{digits}g}")


def fits_already(size: Target, has: str) -> InputError:
    """What is said where the original is no larger than what is asked for."""
    return InputError(
        f"the original fits in {size} as it is, with {has}",
        field="fit",
        hint="ask for less, or take the original",
    )


def budgets_of(target: Target) -> str:
    """The budgets that a target can be of: `bytes or memory`."""
    every = get_args(BudgetKind)[1:]  # all but block parameters, of which `keep` is a share
    names = [kind for kind in every if not target.unit or COUNTED.get(kind) == target.counts]
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def require_of_budget(target: Target, budget: BudgetKind) -> None:
    """Refuses a target of another budget, and what is no share."""
    counted = COUNTED.get(budget)
    hint = "give a number in (0, 1]"
    hint += f", or {counted} such as {EXAMPLES[counted]}" if counted else ""
    if not target.unit and not 0 < target.amount <= 1:
        raise InputError(f"{target} is not a share", field="fit", hint=hint)
    if target.unit and target.counts != counted:
        what = f"{target} is in {target.counts}, and {budget} "
        what += f"counts {counted}" if counted else "takes shares alone"
        hint += f", or a `budget` of {budgets_of(target)}"
        raise InputError(what, field="fit", hint=hint)
    if target.amount <= 0:
        raise InputError(f"{target} is nothing", field="fit", hint=hint)
