"""Several sources of text: how often each is drawn, fixed or following what pruning costs it.

Dynamic batch loading (Sheared LLaMA, arXiv 2310.06694, Algorithm 1): a source whose loss lies
further above that of the dense model is drawn more often,

    w_i ← w_i·exp(η·max(ℓ_i − ℓ_i of the dense model, 0)), normalised,

with ℓ_i the mean loss of the windows of source i since the last update. (The paper takes η = 1 and
updates every 50 to 100 steps against losses that a scaling law predicts; here losses stay above the
dense model's, and a step size of 1 would soon draw a single source.)

C sources, B windows, T tokens of a window.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from disp_llm.data.tokens import Corpus
from disp_llm.data.windows import Windows, joined
from disp_llm.runs.job import Process

EVERY = 10
"""Steps between updates."""


RATE = 0.3
"""η."""


REFERENCE_WINDOWS = 8
"""Of each source, for the dense model's loss."""


class Mixture(nn.Module):
    """Draws windows; its weights and sums are buffers, so that a checkpoint holds them."""

    def __init__(self, corpus: Corpus):
        super().__init__()
        self.corpus = corpus
        self.register_buffer("weights", torch.tensor(corpus.weights, dtype=torch.float64))
        self.register_buffer("reference", torch.zeros_like(self.get_buffer("weights")))
        self.register_buffer("sums", torch.zeros(2, len(corpus.streams), dtype=torch.float64))

    def measure_reference(
        self, loss_of: Callable[[Windows], Tensor], length: int, noise: torch.Generator
    ) -> None:
        """Takes the loss of the dense model on every source, where weights are to follow it."""
        if self.corpus.dynamic:
            for source in range(len(self.corpus.streams)):
                windows = self.corpus.windows(source, REFERENCE_WINDOWS, length, noise)
                losses = [float(loss_of(windows.one(i)).mean()) for i in range(len(windows))]
                self.get_buffer("reference")[source] = sum(losses) / len(losses)

    def draw(
        self, count: int, length: int, noise: torch.Generator
    ) -> tuple[Windows, Int[Tensor, " B"]]:
        """Windows in a random order, and which source each is from: of every source as many as its
        weight says, to the next whole number above or below, so that a step is not all of a kind.
        """
        if len(self.corpus.streams) == 1:
            windows = self.corpus.windows(0, count, length, noise)
            return windows, torch.zeros(count, dtype=torch.long)
        weights = self.get_buffer("weights").cpu()
        ends = weights.cumsum(0) / weights.sum()
        first = torch.rand((), generator=noise, dtype=torch.float64)
        places = (torch.arange(count) + first) / count  # systematic sampling
        sources = torch.searchsorted(ends, places, right=True).clamp(max=len(weights) - 1)
        sources = sources[torch.randperm(count, generator=noise)]
        windows = [self.corpus.windows(source, 1, length, noise) for source in sources.tolist()]
        return joined(windows), sources

    def draw_own(
        self, count: int, length: int, noise: torch.Generator, process: Process
    ) -> tuple[Windows, Int[Tensor, " B"]]:
        """The part of one process, so many windows, of a batch that all draw alike."""
        windows, sources = self.draw(count * process.count, length, noise)
        own = process.own(torch.arange(len(windows)))
        return windows[own], sources[own]

    def record_losses(
        self, sources: Int[Tensor, " B"], losses: Float[Tensor, " B"], process: Process
    ) -> None:
        """Remembers mean losses of windows until the next update, those of all processes, which
        call it alike: one checkpoint then serves them all."""
        if not self.corpus.dynamic:
            return
        sums = self.get_buffer("sums")
        values = torch.stack([losses.detach().double(), torch.ones_like(losses).double()])
        own = torch.zeros_like(sums).index_add_(1, sources.to(sums.device), values.to(sums.device))
        sums += process.sum(own)

    def update(self, step: int) -> None:
        """Every few steps, moves the weights of dynamic loading."""
        if not self.corpus.dynamic or step == 0 or step % EVERY:
            return
        weights, reference, sums = (
            self.get_buffer(name) for name in ("weights", "reference", "sums")
        )
        total, count = sums
        excess = torch.where(count > 0, total / count.clamp(min=1) - reference, 0.0)
        moved = weights * (RATE * excess.clamp(min=0)).exp()
        weights.copy_(moved / moved.sum())
        sums.zero_()

    def figures(self) -> dict[str, list[float]]:
        """For the log of a step, where there are several sources."""
        weights = self.get_buffer("weights").tolist()
        return {"mixture": [round(w, 4) for w in weights]} if len(weights) > 1 else {}
