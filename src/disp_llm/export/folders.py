"""Models -> folders, each written whole or not at all."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from disp_llm.compact.modeling_disp_llm import linear_at
from disp_llm.export.belongings import strip_foreign
from disp_llm.export.cutting import compact_model
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks
from disp_llm.runs.files import atomic


def export_folder(
    target: PrunableModel, tokenizer: Any, masks: Masks, folder: Path, max_shard_size: str
) -> None:
    """Writes the compact model of some masks; a folder of the same name is replaced.

    `save_pretrained` of transformers writes it, so that the code that the folder needs travels
    with it, also when the model is loaded, tuned and saved again.

    Raises:
        InputError: it cannot be written.
    """
    write_folder(compact_model(target, masks), tokenizer, folder, max_shard_size)


def write_folder(
    compact: PreTrainedModel, tokenizer: Any, folder: Path, max_shard_size: str
) -> None:
    """Writes a model with its tokenizer, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    with atomic(folder) as temporary:
        compact.save_pretrained(temporary, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(temporary)
        strip_foreign(temporary)


def added_biases(target: PrunableModel, masks: Masks) -> int:
    """Numbers of biases that the compact model has and the dense one has not."""
    if masks.compensation.mean_inputs is None:
        return 0
    counts = masks.counts.view(len(masks.layout.blocks), -1).tolist()
    sites = [masks.layout.sites.index(site) for site in ("attn_out", "mlp_out")]
    return sum(
        count[site]
        for block, count in zip(target.blocks, counts, strict=True)
        for branch, site in zip(target.branches, sites, strict=True)
        if linear_at(block, branch.writes).bias is None
    )


def weight_bytes(folder: Path) -> int:
    """Size of the safetensors files of a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
