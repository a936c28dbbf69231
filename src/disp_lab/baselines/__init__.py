"""Baselines, which do more than drop dimensions: what a comparison sets beside masks.

Others use `baseline_named` and `all_baselines`. One file each: `BASELINE` with its name, title,
reference and function.
"""

import importlib

from disp_lab.names import BASELINES
from disp_lab.parts.baseline import Baseline


def baseline_named(name: str) -> Baseline:
    """The baseline of that name, one of `BASELINES`."""
    return importlib.import_module(f"{__name__}.{name}").BASELINE


def all_baselines() -> dict[str, Baseline]:
    """All baselines by name."""
    return {name: baseline_named(name) for name in BASELINES}
