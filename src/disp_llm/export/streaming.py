"""A plan -> the folder of the compact model, from file to file.

Neither the dense model nor the compact one is ever in memory: tensor by tensor, in the order of the
new files, what each is made of is read, and what it becomes is written. The folder is, to the last
byte, what `write_folder` writes of the same model in memory.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers import PreTrainedModel

from disp_llm.export.cutting import empty_compact_model
from disp_llm.export.folders import MAX_SHARD, write_readers
from disp_llm.export.parts import made
from disp_llm.export.plan import plan_of
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks
from disp_llm.models.checkpoint import Checkpoint
from disp_llm.models.files import INDEX
from disp_llm.runs.lazily import write_lazily

FORMAT = {"format": "pt"}
"""What transformers writes into the header of its files."""

NUMBERED = re.compile(r"(.*?)(\d*)")
"""A part of a name: a word and the number at its end, either of which may be missing."""

OnTensor = Callable[[int, int], None]
"""Called with how many tensors are done, and of how many."""


def stream_folder(
    target: PrunableModel,
    masks: Masks,
    checkpoint: Checkpoint,
    tokenizer: Any,
    folder: Path,
    max_shard_size: str = MAX_SHARD,
    on_tensor: OnTensor = lambda done, total: None,
) -> PrunableModel:
    """Writes the compact model of an empty dense one, and returns it, empty too.

    Args:
        checkpoint: the files of the dense model.

    Raises:
        InputError: a file cannot be read, or holds a number that is not finite.
        OSError: the folder cannot be written.
    """
    compact = empty_compact_model(target, masks)
    parts = plan_of(target, masks).parts

    def make(name: str) -> Tensor:
        return made(parts[name], checkpoint.read)

    compact.save_pretrained(folder, state_dict={})  # all but the weights
    write_weights(compact, make, folder, max_shard_size, on_tensor)
    write_readers(tokenizer, target.processor, folder)
    return PrunableModel(compact, target.family)


def write_weights(
    compact: PreTrainedModel,
    make: Callable[[str], Tensor],
    folder: Path,
    max_shard_size: str = MAX_SHARD,
    on_tensor: OnTensor = lambda done, total: None,
) -> None:
    """Files of the tensors of a model, and their index where there are several."""
    shapes = _saved(compact)
    split = split_torch_state_dict_into_shards(
        shapes, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    done = 0

    def counted(name: str) -> Tensor:
        nonlocal done
        on_tensor(done, len(shapes))
        done += 1
        return make(name)

    for file, names in split.filename_to_tensors.items():
        write_lazily(folder / file, {name: shapes[name] for name in names}, counted, FORMAT)
    on_tensor(done, len(shapes))
    if split.is_sharded:
        totals = {"total_parameters": compact.num_parameters(), **split.metadata}
        index = {"metadata": totals, "weight_map": split.tensor_to_filename}
        said = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / INDEX).write_text(said, encoding="utf-8")


def _saved(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of a model that are written, of tied ones the first, in the order in which
    transformers divides them among files."""
    first = {name for name, _ in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - first
    state = model.state_dict()
    return {name: state[name] for name in sorted(state.keys() - tied, key=natural)}


def natural(name: str) -> list[tuple[bool, str, int]]:
    """A key by which `layers.10` follows `layers.9`, and numbers come before words: the order in
    which transformers writes tensors."""
    found = (NUMBERED.fullmatch(part) for part in name.split("."))
    parts = [match.groups() for match in found if match]
    return [(bool(word), word, int(digits or -1)) for word, digits in parts]
