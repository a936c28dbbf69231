"""What `--methods` of `disp-llm compare` knows, from what each method says of itself: a part of
docs/commands.md."""

import re

from markdown_table import table

from disp_lab.baselines import ALL
from disp_lab.names import BASELINES
from disp_lab.variants import VARIANTS, compared_methods
from disp_llm.methods import method_named


def methods_table() -> list[str]:
    """A row for each: its name, what it is, its paper, and whether `prune --method` takes it."""
    rows = []
    for name in compared_methods():
        if name in VARIANTS:
            told = " ".join((VARIANTS[name].__doc__ or "").split())
            rows.append((f"`{name}`", told.rstrip("."), "", ""))
            continue
        masks = name not in BASELINES
        method = method_named(name) if masks else ALL[name]
        paper, link = _paper(method.reference)
        rows.append((f"`{name}`", f"{method.title}{paper}", link, "yes" if masks else ""))
    return table(("name", "is", "paper", "`prune`"), rows, "llll")


def _paper(reference: str) -> tuple[str, str]:
    """Its authors, and a link to it; a reference to nothing outside is left out."""
    authors, _, rest = reference.partition(", ")
    number = re.search(r"arXiv (\d+\.\d+)", rest)
    if number is None:
        return "", ""
    return f" ({authors})", f"[{number[1]}](https://arxiv.org/abs/{number[1]})"
