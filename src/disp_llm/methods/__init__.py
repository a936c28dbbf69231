"""Every way to choose masks.

A method gets a `Task` and a `Context` and returns a `Choice`: the logits of all entries, whose
projection onto the budget is the masks of a size, and scales. Only `learned` trains anything.
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
