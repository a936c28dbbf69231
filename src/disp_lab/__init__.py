"""Rivals of disp-llm, and the comparison with them.

`methods` choose masks and `baselines` do more; each is written from its paper. `comparison`
measures all of them beside ours, for `disp-llm compare` and for `compare` here. `disp_llm` imports
nothing from this package: entry points (pyproject.toml) plug it in, like any other package.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from disp_lab.comparison.compare import compare as compare


def __getattr__(name: str) -> Any:
    """Imports `compare` when it is first asked for, because it needs torch."""
    if name != "compare":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from disp_lab.comparison.compare import compare

    return compare
