"""Every way to choose masks.

A method gets a `Task` and a `Context` and returns a `Choice`: the logits of all entries, whose
projection onto the budget is the masks of a size, and what else the export is to do.
"""

from collections.abc import Callable
from dataclasses import dataclass

from disp_llm.config import HEADS, SITES, MethodName
from disp_llm.learn import Task
from disp_llm.masks import Choice
from disp_llm.methods.context import Context
from disp_llm.methods.fisher import fisher
from disp_llm.methods.flap import flap
from disp_llm.methods.learned import learned
from disp_llm.methods.magnitude import magnitude
from disp_llm.methods.random import random
from disp_llm.methods.sheared import sheared
from disp_llm.methods.taylor import taylor
from disp_llm.methods.wanda import wanda

COUPLED = ("mlp_mid", HEADS)
"""The structures of methods that leave the residual stream alone."""


@dataclass(frozen=True)
class Method:
    """A way to choose, and where it drops entries unless --sites says otherwise."""

    choose: Callable[[Task, Context], Choice]
    sites: tuple[str, ...] = SITES
    reads_text: bool = True
    """Whether it takes calibration sequences."""
    learns: bool = False
    """Whether it takes steps on learning windows."""
    one_size: bool = False
    """Whether what it chooses serves one size only."""
    every_site: bool = False
    """Whether it cannot leave one of its sites whole."""


METHODS: dict[MethodName, Method] = {
    "learned": Method(learned, learns=True),
    "fisher": Method(fisher),
    "taylor": Method(taylor, COUPLED, one_size=True),
    "flap": Method(flap, COUPLED),
    "wanda": Method(wanda, COUPLED, one_size=True),
    "sheared": Method(
        sheared,
        (*SITES, HEADS),
        reads_text=False,
        learns=True,
        one_size=True,
        every_site=True,
    ),
    "magnitude": Method(magnitude, reads_text=False),
    "random": Method(random, reads_text=False),
}
