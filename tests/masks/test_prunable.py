"""A model that was loaded, as what is pruned."""

from pathlib import Path

import pytest
import torch
from conftest import sites_with, tiny_prunable, unusual_prunable

from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.loading import Loaded


def test_what_was_loaded_is_what_is_pruned():
    target, sites = tiny_prunable("llama"), sites_with(heads=True)
    files = (Path("preprocessor_config.json"),)
    loaded = Loaded(target.model, None, target.family, {}, torch.float32, files)
    wanted = PrunableModel(target.model, target.family, sites, files)
    assert PrunableModel.of(loaded, sites) == wanted


@pytest.mark.parametrize(
    ("name", "usual"),
    [
        ("llama", True),
        ("gemma4_unified_text", True),  # unusual ones borrow keys and values
        ("gemma4_text", False),  # and have experts
        ("qwen3_moe", False),
        ("lfm2", False),
        ("bamba", False),
        ("falcon", False),
    ],
)
def test_blocks_that_serving_engines_expect(name, usual):
    assert unusual_prunable(name).usual_blocks == usual
