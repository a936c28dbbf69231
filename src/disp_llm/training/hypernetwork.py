"""The paper's parametrisation of the logits (section 3.3, Table 5): one small network for all
sites, trained instead of the model's weights.

N entries of all sites, S sites.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

INPUT, HIDDEN = 32, 64  # the paper's Table 5; a Linear reads both directions, 128 numbers


class Hypernetwork(nn.Module):
    """x = start + HN(z), with a zero start in the paper: fixed z (S, 1, 32) → bidirectional GRU(32,
    64) → LayerNorm(128) → GELU → one bias-free Linear(128, N_s) per site.

    Weights use PyTorch's default initialisation, seeded from `generator`. All weights and the fixed
    z are saved.
    """

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
            self.register_buffer("z", torch.randn(len(lengths), 1, INPUT))
            self.gru = nn.GRU(INPUT, HIDDEN, bidirectional=True)
            self.norm = nn.LayerNorm(2 * HIDDEN)

    def forward(self) -> Float[Tensor, " N"]:
        hidden, _ = self.gru(self.z)  # (S, 1, 128)
        features = nn.functional.gelu(self.norm(hidden)).squeeze(1)  # (S, 128)
        parts = [head(row) for head, row in zip(self.heads, features, strict=True)]
        return self.start + torch.cat(parts)
