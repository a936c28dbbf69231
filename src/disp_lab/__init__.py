"""Where rivals of disp-llm live, and are compared with it.

`methods` choose masks and `baselines` do more; each is written from its paper. `comparison` sets
all of them beside ours, for `disp-llm compare` and `compare` here. `disp_llm` imports nothing of
it: it is plugged in by entry points (pyproject.toml), as any other package can be.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from disp_lab.comparison.compare import compare as compare


def __getattr__(name: str) -> Any:
    """`compare`, which is imported when it is first asked for: it takes torch."""
    if name != "compare":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from disp_lab.comparison.compare import compare

    return compare
