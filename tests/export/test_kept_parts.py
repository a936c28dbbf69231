"""Rows and columns of a weight that are kept, alone and in chunks."""

import pytest
import torch

from disp_llm.export.parts import kept_of_matrix


@pytest.mark.parametrize("chunk", [1, 8, 16])
def test_rows_and_columns_are_those_that_are_kept(chunk):
    noise = torch.Generator().manual_seed(0)
    stored = torch.randn(48, 32, generator=noise)
    rows = (torch.rand(48, generator=noise) < 0.5).nonzero().squeeze(-1)
    chunks = torch.tensor([0, 1, 3])
    columns = (
        (chunks.unsqueeze(1) * 8 + torch.arange(8)).flatten() if chunk > 1 else rows[rows < 32]
    )
    if chunk == 16:
        columns = torch.arange(16, 32)
    wanted = stored[rows][:, columns]
    assert torch.equal(kept_of_matrix(stored, False, columns, rows), wanted)
    assert torch.equal(kept_of_matrix(stored, True, rows, columns), wanted)
    assert torch.equal(kept_of_matrix(stored, False, None, rows), stored[rows])
    assert torch.equal(kept_of_matrix(stored, False, columns, None), stored[:, columns])
    for some in (columns + 1, torch.tensor([0, 2, 4, 6, 8, 10, 12, 15])):  # no chunks
        some = some[some < 32]
        assert torch.equal(kept_of_matrix(stored, False, some, None), stored[:, some])
