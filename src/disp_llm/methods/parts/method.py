"""What a method declares about itself."""

from collections.abc import Callable
from dataclasses import dataclass

from disp_llm.config.names import SITES, Site
from disp_llm.masks.selection import Selection
from disp_llm.training.problem import PruningProblem


@dataclass(frozen=True)
class Method:
    """A way to choose which entries are kept."""

    name: str
    """What `method` calls it in settings and results: the name of its file or entry point."""
    title: str
    """What readers know it as."""
    reference: str
    """The paper: authors, title, where it can be found."""
    choose: Callable[[PruningProblem], Selection]
    """Gives every entry an importance; those with the highest are kept, as many as fit the size."""
    sites: tuple[Site, ...] = SITES
    """Where it prunes entries, unless the setting `sites` says otherwise."""
    drops_branches: bool = False
    """Whether it gives whole branches an importance, where they are sites."""
    knows_experts: bool = False
    """Whether it can prune mixtures of experts."""
    reads_weights: bool = True
    """Whether it looks at the weights themselves, and not only at what the model computes."""
    reads_text: bool = True
    """Whether it reads calibration sequences."""
    learns: bool = False
    """Whether it takes steps on learning windows."""
    one_size: bool = False
    """Whether its selection serves one size only."""
    every_site: bool = False
    """Whether it has to prune at each of its sites."""
