"""The steps of a projection: groups of entries, their order, and how many have room."""

import pytest
import torch

from disp_llm.masks.groups import fill, groups_of
from disp_llm.masks.layout import Layout
from disp_llm.masks.shapes import BlockShape

CPU = torch.device("cpu")
SHAPE = BlockShape(hidden=4, qkv=6, q=4, num_input_projections=2, intermediate=6)
LAYOUT = Layout((SHAPE, SHAPE))


def test_groups_are_neighbours_in_rank_and_the_last_may_be_smaller():
    groups = groups_of(LAYOUT, 4, 1, (), CPU)
    of_block = [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 2 + [5] * 4
    assert groups.of_entry.tolist() == [*of_block, *(one + 6 for one in of_block)]
    assert groups.is_first.tolist() == [True, True, True, True, False, True] * 2
    assert groups.counts(torch.ones(12, dtype=torch.bool)).tolist() == list(LAYOUT.lengths)


def test_blocks_that_are_alike_share_groups_of_several_pieces():
    groups = groups_of(LAYOUT, 3, 1, ("mlp_mid",), CPU)
    middle = torch.tensor([site == "mlp_mid" for site in LAYOUT.sites] * 2)
    shared = groups.of_sites(middle)
    assert int(shared.sum()) == 2  # of both blocks together
    scores = torch.zeros(LAYOUT.entries)
    scores[LAYOUT.entries_of("mlp_mid")] = torch.tensor([9.0, 8, 7, 1, 2, 3] * 2)
    assert groups.means(scores)[shared].tolist() == [8, 2]
    order = groups.means(scores).argsort(descending=True, stable=True)
    assert groups.counts(groups.first(order, 1)).tolist() == [0, 0, 0, 3, 0] * 2


@pytest.mark.parametrize("room", [0, 1, 7, 21, 44, 99])
def test_the_longest_prefix_is_that_of_a_search_one_by_one(room):
    groups = groups_of(LAYOUT, 1, 1, (), CPU)
    order = torch.randperm(44, generator=torch.Generator().manual_seed(0))
    none = torch.zeros(10, dtype=torch.bool)
    found, count = fill(groups, order, 0, lambda counts: float(counts.sum()) <= room, none)
    assert torch.equal(found, order)
    assert count == min(room, 44)


def test_what_is_too_large_is_passed_over_where_it_may_be():
    """What has entries of mlp_mid has no room."""
    groups = groups_of(Layout((SHAPE,)), 4, 1, (), CPU)
    best_first = torch.tensor([0, 1, 3, 4, 2, 5])
    none = torch.zeros(5, dtype=torch.bool)

    def fits(counts):
        return bool(counts[3] == 0)

    order, count = fill(groups, best_first, 1, fits, none)
    assert (order.tolist(), count) == ([0, 1, 3, 4, 2, 5], 2)
    large = torch.tensor([False, False, False, True, False])
    order, count = fill(groups, best_first, 1, fits, large)
    assert (order.tolist(), count) == ([0, 1, 2, 5, 3, 4], 4)


def test_groups_of_a_site_that_has_no_room_are_passed_over_together():
    """Each by a search of its own, as of the experts of a mixture, would take most of a step."""
    shape = BlockShape(hidden=4, qkv=6, q=4, num_input_projections=2, intermediate=400)
    groups, asked = groups_of(Layout((shape,)), 1, 1, (), CPU), list[float]()

    def fits(counts):
        asked.append(float(counts.sum()))
        return bool(counts[3] == 0)

    middle = torch.tensor([site == "mlp_mid" for site in ("a", "b", "c", "mlp_mid", "d")])
    best_first = groups.of_sites(middle).int().argsort(descending=True, stable=True)
    order, count = fill(groups, best_first, 0, fits, middle)
    assert count == len(order) - 400
    assert order[count:].tolist() == best_first[:400].tolist()
    assert len(asked) < 20
