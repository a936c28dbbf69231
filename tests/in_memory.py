"""The compact model of some masks, cut in memory and written as a folder."""

from pathlib import Path
from unittest import mock

import torch
from conftest import byte_tokenizer, sites_with, tiny_model

from disp_llm.exporter import folders
from disp_llm.exporter.cutting import compact_model
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks, Selection
from disp_llm.models.architectures import family_of
from disp_llm.runs.files import atomic
from disp_llm.runs.sums import write_sums


def export_folder(target, tokenizer, masks, folder: Path, largest: str = "5GB") -> None:
    with mock.patch.object(folders, "MAX_SHARD", largest), atomic(folder) as temporary:
        compact = compact_model(target, masks)
        folders.write_folder(compact, tokenizer, temporary, target.processor)
        write_sums(temporary)


LLAMA_3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip


def blocks_that_differ(folder: Path) -> Path:
    """A Llama 3 whose MLPs are 256 and 512 wide; its second block has no attention, its third no
    MLP. Nothing else is pruned."""
    changes = {
        "hidden_size": 128, "intermediate_size": 1024, "head_dim": 32, "num_attention_heads": 4,
        "num_key_value_heads": 2, "rope_parameters": LLAMA_3_ROPE,
    }  # fmt: skip
    dense = tiny_model("llama", **changes)
    target = PrunableModel(dense, family_of(dense.config), sites_with(branches=True))
    layout = target.layout
    kept = torch.ones(layout.entries, dtype=torch.bool)
    parts = layout.named(kept)
    noise = torch.Generator().manual_seed(0)
    for block, width in enumerate((256, 512)):
        channels = parts[f"layers.{block}.mlp_mid"]
        channels[:] = False
        channels[torch.randperm(1024, generator=noise)[:width]] = True
    parts["layers.1.attention"][:] = parts["layers.2.mlp"][:] = False
    masks = Masks(layout, layout.without_dropped(kept), Selection(torch.zeros(layout.entries)))
    export_folder(target, byte_tokenizer(), masks, folder)
    return folder
