"""What is trained in place of the model's weights: one vector of logits for all sites.

`FreeLogits` trains the logits themselves; `Hypernetwork` is the paper's (section 3.3, Table 5) and
`Heads` the same without its Bi-GRU. All add what they train to a start vector, which is zero for
the paper's random start. `Tied` lets the sites of the residual stream share one mask.

N entries of all sites, S sites, M entries of the tied vector.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from disp_llm.masks.layout import STREAM_SITES, Layout

INPUT, HIDDEN = 32, 64  # the paper's Table 5; a Linear reads both directions, 128 numbers


class FreeLogits(nn.Module):
    """x = Θ, with Θ starting at the start vector."""

    def __init__(
        self, start: Float[Tensor, " N"], lengths: Sequence[int], generator: torch.Generator
    ):
        super().__init__()
        self.logits = nn.Parameter(start.clone())

    def forward(self) -> Float[Tensor, " N"]:
        return self.logits


class Heads(nn.Module):
    """x = start + one bias-free Linear(128, N_s) a site, on a fixed random input."""

    def __init__(
        self, start: Float[Tensor, " N"], lengths: Sequence[int], generator: torch.Generator
    ):
        super().__init__()
        self.register_buffer("start", start.clone())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator, device="cpu")))
            self.heads = nn.ModuleList(
                nn.Linear(2 * HIDDEN, length, bias=False) for length in lengths
            )
            self.make_input(len(lengths))

    def make_input(self, sites: int) -> None:
        self.register_buffer("z", torch.randn(sites, 2 * HIDDEN))

    def features(self) -> Float[Tensor, "S 128"]:
        return self.get_buffer("z")

    def forward(self) -> Float[Tensor, " N"]:
        parts = [head(row) for head, row in zip(self.heads, self.features(), strict=True)]
        return self.start + torch.cat(parts)


class Hypernetwork(Heads):
    """x = start + HN(z): fixed z (S, 1, 32) → bidirectional GRU(32, 64) → LayerNorm(128) → GELU
    → one bias-free Linear(128, N_s) a site.

    Weights are drawn as PyTorch draws them by default, from `generator`; they are saved whole, the
    fixed z included.
    """

    def make_input(self, sites: int) -> None:
        self.register_buffer("z", torch.randn(sites, 1, INPUT))
        self.gru = nn.GRU(INPUT, HIDDEN, bidirectional=True)
        self.norm = nn.LayerNorm(2 * HIDDEN)

    def features(self) -> Float[Tensor, "S 128"]:
        hidden, _ = self.gru(self.z)  # (S, 1, 128)
        return nn.functional.gelu(self.norm(hidden)).squeeze(1)


class Tied(nn.Module):
    """The paper's ablation "constrained": S1 = S2 = S3 = S5, one mask of the residual stream for
    all blocks, and an mlp_mid of its own for each."""

    def __init__(
        self, make: type[nn.Module], start: Float[Tensor, " N"], layout: Layout, generator
    ):
        super().__init__()
        lengths, index = shared_entries(layout)
        self.register_buffer("index", index.to(start.device))
        counts = torch.bincount(self.index)
        sums = torch.zeros(len(counts), device=start.device).index_add(0, self.index, start)
        self.inner = make(sums / counts, lengths, generator)

    def forward(self) -> Float[Tensor, " N"]:
        return self.inner()[self.index]


def shared_entries(layout: Layout) -> tuple[list[int], Int[Tensor, " N"]]:
    """Lengths of the tied vector's parts, and which of its M entries each of the N entries is."""
    hidden = layout.blocks[0].hidden
    lengths, index = [hidden], []
    for block in layout.blocks:
        for site, length in zip(layout.sites, block.lengths, strict=True):
            own = site not in STREAM_SITES
            index.append(torch.arange(length) + (sum(lengths) if own else 0))
            if own:
                lengths.append(length)
    return lengths, torch.cat(index)


def choices(layout: Layout, chunk: int, tied: bool) -> Int[Tensor, " N"] | None:
    """Which of the choices that a mask consists of each entry is: one is made for all entries whose
    logits are tied, and for all of a chunk. None = each is a choice of its own."""
    if chunk == 1 and not tied:
        return None
    index = shared_entries(layout)[1] if tied else torch.arange(layout.entries)
    parts = zip(layout.split(index), layout.in_stream.tolist(), strict=True)
    leaders = [p[::chunk].repeat_interleave(chunk) if in_stream else p for p, in_stream in parts]
    return torch.unique(torch.cat(leaders), return_inverse=True)[1]


PARAMETRISATIONS: dict[str, type[nn.Module]] = {
    "logits": FreeLogits,
    "heads": Heads,
    "hypernetwork": Hypernetwork,
}


def numbers_of(name: str, entries: int) -> int:
    """How many numbers a parametrisation trains for so many logits."""
    with torch.device("meta"):
        made = PARAMETRISATIONS[name](torch.zeros(entries), (entries,), torch.Generator())
    return sum(parameter.numel() for parameter in made.parameters())


def build(
    name: str, start: Float[Tensor, " N"], layout: Layout, generator, tied: bool
) -> nn.Module:
    """What a configuration trains, on the device of `start`."""
    make = PARAMETRISATIONS[name]
    made = Tied(make, start, layout, generator) if tied else make(start, layout.lengths, generator)
    return made.to(start.device)
