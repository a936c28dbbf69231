"""The steps of a projection: groups of entries, their order, and how many have room."""

import pytest
import torch

from disp_llm.masks.groups import Ranking, fill, groups_of
from disp_llm.masks.layout import Layout
from disp_llm.masks.shapes import BlockShape

CPU = torch.device("cpu")
SHAPE = BlockShape(
    hidden=4, qkv=6, q=4, num_input_projections=2, intermediate=6, biases=(0, 0, 0, 0, 0)
)
LAYOUT = Layout((SHAPE, SHAPE))


def test_groups_are_neighbours_in_rank_and_the_last_may_be_smaller():
    groups = groups_of(LAYOUT, 4, 1, (), CPU)
    of_block = [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 2 + [5] * 4
    assert groups.of_entry.tolist() == [*of_block, *(one + 6 for one in of_block)]
    assert groups.is_first.tolist() == [True, True, True, True, False, True] * 2
    assert groups.counts(slice(None)).tolist() == list(LAYOUT.lengths)


def test_blocks_that_are_alike_share_groups_of_several_pieces():
    groups = groups_of(LAYOUT, 3, 1, ("mlp_mid",), CPU)
    middle = torch.tensor([site == "mlp_mid" for site in LAYOUT.sites] * 2)
    shared = groups.of_sites(middle)
    assert int(shared.sum()) == 2  # of both blocks together
    scores = torch.zeros(LAYOUT.entries)
    scores[LAYOUT.entries_of("mlp_mid")] = torch.tensor([9.0, 8, 7, 1, 2, 3] * 2)
    assert groups.means(scores)[shared].tolist() == [8, 2]
    ranking = Ranking.of(groups, groups.means(scores).argsort(descending=True, stable=True))
    assert ranking.counts(1).tolist() == [0, 0, 0, 3, 0] * 2
    assert ranking.site_of(0) == 8  # its last piece
    assert ranking.with_last(0).counts(len(ranking.order) - 1)[3] == 3


@pytest.mark.parametrize("room", [0, 1, 7, 21, 44, 99])
def test_the_longest_prefix_is_that_of_a_search_one_by_one(room):
    groups = groups_of(LAYOUT, 1, 1, (), CPU)
    ranking = Ranking.of(groups, torch.randperm(44, generator=torch.Generator().manual_seed(0)))
    found = ranking.longest(lambda counts: float(counts.sum()) <= room, 0, 44)
    assert found == min(room, 44)


def test_what_is_too_large_is_passed_over_where_it_may_be():
    """What has entries of mlp_mid has no room."""
    groups = groups_of(Layout((SHAPE,)), 4, 1, (), CPU)
    ranking = Ranking.of(groups, torch.tensor([0, 1, 3, 4, 2, 5]))
    none = torch.zeros(5, dtype=torch.bool)

    def fits(counts):
        return bool(counts[3] == 0)

    order, count = fill(ranking, 1, fits, none)
    assert (order.tolist(), count) == ([0, 1, 3, 4, 2, 5], 2)
    order, count = fill(ranking, 1, fits, torch.tensor([False, False, False, True, False]))
    assert (order.tolist(), count) == ([0, 1, 2, 5, 3, 4], 4)
