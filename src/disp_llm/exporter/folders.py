"""Writes models to folders, tensor by tensor or from memory, with tokenizer and processor."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.core_model_loading import dot_natural_key

from disp_llm.exporter.cutting import empty_compact_model
from disp_llm.exporter.parts import Read, made
from disp_llm.exporter.plan import plan_of
from disp_llm.exporter.stripping import strip_foreign
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks
from disp_llm.models.files import INDEX, weight_files
from disp_llm.runs.progress import Ticks, unwatched
from disp_llm.runs.tensors import write_lazily

MAX_SHARD = "5GB"
"""Largest size of one weight file."""


def stream_folder(
    target: PrunableModel,
    masks: Masks,
    read: Read,
    tokenizer: Any,
    folder: Path,
    on_tensor: Ticks = unwatched,
) -> PrunableModel:
    """Writes the compact model of an original, and returns it without weights.

    Neither model need be in memory; the original may be on the meta device. For each tensor, in the
    order of the new files, it reads the sources and writes the result. The folder equals, to the
    last byte, what `write_folder` writes of the same model in memory.
    """
    compact = empty_compact_model(target, masks)
    parts = plan_of(target, masks)

    def make(name: str) -> Tensor:
        return made(parts[name], read)

    save(compact, folder, state_dict={})  # all but the weights
    write_weights(compact, make, folder, on_tensor)
    write_readers(tokenizer, target.processor, folder)
    return PrunableModel(compact, target.family)


def write_weights(
    compact: PreTrainedModel,
    make: Callable[[str], Tensor],
    folder: Path,
    on_tensor: Ticks = unwatched,
) -> None:
    """Writes the tensors of a model, and an index if they need several files."""
    shapes = _saved(compact)
    split = split_torch_state_dict_into_shards(
        shapes, filename_pattern="model{suffix}.safetensors", max_shard_size=MAX_SHARD
    )
    done = 0

    def counted(name: str) -> Tensor:
        nonlocal done
        on_tensor(done, len(shapes))
        done += 1
        return make(name)

    for file, names in split.filename_to_tensors.items():
        write_lazily(
            folder / file, {name: shapes[name] for name in names}, counted, {"format": "pt"}
        )
    on_tensor(done, len(shapes))
    if split.is_sharded:
        totals = {"total_parameters": compact.num_parameters(), **split.metadata}
        index = {"metadata": totals, "weight_map": split.tensor_to_filename}
        said = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / INDEX).write_text(said, encoding="utf-8")


def _saved(model: PreTrainedModel) -> dict[str, Tensor]:
    """Tensors of a model that are saved, only the first of tied ones, in the order in which
    transformers divides them among files."""
    first = {name for name, _ in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - first
    state = model.state_dict()
    return {name: state[name] for name in sorted(state.keys() - tied, key=dot_natural_key)}


def write_folder(
    compact: PreTrainedModel,
    tokenizer: Any,
    folder: Path,
    processor: tuple[Path, ...] = (),
) -> None:
    """Writes a model with its tokenizer and the files of its processor.

    Uses transformers' `save_pretrained`, so that the code that the folder needs travels with it,
    also when the model is loaded, tuned and saved again.
    """
    save(compact, folder, max_shard_size=MAX_SHARD)
    write_readers(tokenizer, processor, folder)


def save(model: Any, folder: Path, **options: Any) -> None:
    """Calls `save_pretrained`, and writes the generation config as it is. transformers refuses to
    save settings that do not go together, such as a temperature without sampling, but published
    models have such."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        model.save_pretrained(folder, **options)
    finally:
        model.generation_config = own
    own.to_json_file(folder / "generation_config.json", keys_to_pop=["compile_config"])


def write_readers(tokenizer: Any, processor: tuple[Path, ...], folder: Path) -> None:
    """Writes the tokenizer, and copies the files of the processor for images and sound. As the
    folder then has all its settings, it also strips foreign ones from them (`strip_foreign`)."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the tokenizers library raises a bare Exception for a full disk
        if type(error) is not Exception:
            raise
        raise OSError(str(error)) from error
    for file in processor:
        shutil.copyfile(file, folder / file.name)
    strip_foreign(folder)


def weight_bytes(folder: Path) -> int:
    """Bytes of a folder's weight files."""
    return sum(path.stat().st_size for path in weight_files(folder))
