"""Every way to choose masks.

A method gets a `Task` and a `Context` and returns the logits of all entries; the masks of a keep
are their projection onto the budget. Only `learned` trains anything.
"""

from collections.abc import Callable

from disp_llm.methods.fisher import fisher
from disp_llm.methods.learned import learned
from disp_llm.methods.magnitude import magnitude
from disp_llm.methods.random import random

METHODS: dict[str, Callable] = {
    "learned": learned,
    "fisher": fisher,
    "magnitude": magnitude,
    "random": random,
}
