"""Plans the cut of the packed weights of a mixture's experts, and of its router.

E experts, K kept intermediate dimensions of each.
"""

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from disp_llm.exporter.entries import Entries, kept_of, where
from disp_llm.exporter.parts import Cut
from disp_llm.models.family import Experts


def of_experts(
    prefix: str, row: Experts, count: int, kept: Entries, scale: Entries | None
) -> list[Cut]:
    """Returns the cuts of the packed weights of a mixture's E = `count` experts and its router."""
    assert kept.middle is not None
    experts = None if kept.experts is None or kept.experts.all() else kept.experts
    kept_experts = kept_of((0, experts))
    middle = kept.middle.view(count, -1)
    width = middle.shape[1]
    middle = middle if experts is None else middle[experts]
    each = int(middle.sum()) // max(len(middle), 1)  # the same number for every expert
    inside = middle.nonzero()[:, 1].view(len(middle), each)
    incoming, outgoing = where(kept.incoming), where(kept.outgoing)
    gate_up = _gate_and_up(inside, width, row)
    of_router, of_read, of_write, of_bias = (), (), (), ()
    if scale is not None:
        assert scale.middle is not None
        of_router = of_read = (scale.incoming[None],)
        of_bias = (scale.rows,)
        of_write = (scale.rows[:, None], scale.middle.view(count, 1, width))
        if scale.experts is not None:
            of_write = (*of_write, scale.experts[:, None, None])
            of_bias = (*of_bias, scale.experts[:, None])
    rows, across = (2, 1) if "transposed" in row.quirks else (1, 2)
    if "transposed" in row.quirks:
        of_read, of_write = (tuple(f.mT for f in factors) for factors in (of_read, of_write))
    read = (*kept_experts, (rows, gate_up), (across, incoming))
    write = (*kept_experts, (rows, outgoing), (across, inside))
    packed = f"{prefix}{row.module}"
    router = Cut(f"{prefix}{row.rows}.weight", kept_experts)
    if "router_reads_all" not in row.quirks:
        router = replace(router, picks=(*kept_experts, (1, incoming)), factors=of_router)
    biases = [
        Cut(f"{packed}.gate_up_proj_bias", (*kept_experts, (1, gate_up))),
        Cut(f"{packed}.down_proj_bias", (*kept_experts, (1, outgoing)), of_bias),
    ]
    return [
        Cut(f"{packed}.gate_up_proj", read, of_read),
        Cut(f"{packed}.down_proj", write, of_write),
        *(biases if "biased" in row.quirks else ()),
        router,
        *(Cut(f"{prefix}{path}", kept_of((-1, experts))) for path in row.counted),
    ]


def _gate_and_up(inside: Int[Tensor, "E K"], width: int, row: Experts) -> Int[Tensor, "E 2*K"]:
    """Rows of `gate_up_proj` that compute these intermediate dimensions; `width` is F."""
    if "interleaved" in row.quirks:
        return torch.stack([2 * inside, 2 * inside + 1], 2).flatten(1)
    return torch.cat([inside, inside + width], 1)
