"""Models -> folders, and what is in them."""

import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from disp_llm.compact.modeling_disp_llm import linear_at
from disp_llm.export.cutting import compact_model
from disp_llm.export.stripping import strip_foreign
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks
from disp_llm.models.files import weight_files
from disp_llm.runs.files import atomic
from disp_llm.runs.sums import write_sums

MAX_SHARD = "5GB"
"""Largest size of one file of weights."""


def export_folder(
    target: PrunableModel,
    tokenizer: Any,
    masks: Masks,
    folder: Path,
    max_shard_size: str = MAX_SHARD,
) -> None:
    """Writes the compact model of some masks, without a card; a folder of that name is replaced.

    Raises:
        InputError: it cannot be written.
    """
    with atomic(folder) as temporary:
        compact = compact_model(target, masks)
        write_folder(compact, tokenizer, temporary, target.processor, max_shard_size)
        write_sums(temporary)


def write_folder(
    compact: PreTrainedModel,
    tokenizer: Any,
    folder: Path,
    processor: tuple[Path, ...] = (),
    max_shard_size: str = MAX_SHARD,
) -> None:
    """Writes a model with its tokenizer, and beside them the files of its processor.

    `save_pretrained` of transformers writes it, so that the code that the folder needs travels
    with it, also when the model is loaded, tuned and saved again.
    """
    compact.save_pretrained(folder, max_shard_size=max_shard_size)
    write_readers(tokenizer, processor, folder)


def write_readers(tokenizer: Any, processor: tuple[Path, ...], folder: Path) -> None:
    """Writes what turns text, and files of what turns pictures and sound, into a model's inputs;
    then the folder has all of its settings, and nothing of others stays in them."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the tokenizers library has no other class for a full disk
        if type(error) is not Exception:
            raise
        raise OSError(str(error)) from error
    for file in processor:
        shutil.copyfile(file, folder / file.name)
    strip_foreign(folder)


def added_biases(target: PrunableModel, masks: Masks) -> int:
    """Numbers of biases that the compact model has and the dense one has not."""
    if masks.compensation.mean_inputs is None:
        return 0
    counts = masks.counts.view(len(masks.layout.blocks), -1).tolist()
    sites = [masks.layout.sites.index(site) for site in ("attn_out", "mlp_out")]
    return sum(
        count[site]
        for block, count in zip(target.blocks, counts, strict=True)
        for branch, site in zip(target.branches_of(block), sites, strict=True)
        if linear_at(block, branch.writes).bias is None
    )


def weight_bytes(folder: Path) -> int:
    """Size of the files that a folder's weights lie in."""
    return sum(path.stat().st_size for path in weight_files(folder))
