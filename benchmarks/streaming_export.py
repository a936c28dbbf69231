"""Time and memory of an export: the model in memory, and from file to file.

A Llama with random weights is written in bfloat16, and exported both ways at half its block
parameters with the scales and adapters that a learned run has, each way in a process of its own.
Peak anonymous memory is what the kernel cannot drop and read again (RssAnon), looked at every 5 ms;
`nothing` is what libraries, masks and adapters take of it where nothing is exported. The two
folders must be the same to the byte.

    python benchmarks/streaming_export.py --folder FOLDER [--shape 2.5B] [--shard 1GB]
        [--ways nothing memory streaming]
"""

import argparse
import json
import multiprocessing
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from random_llama import SHAPES, memory, write_llama

from disp_llm.compact.modeling_disp_llm import widths_of
from disp_llm.config.parts import MachineConfig
from disp_llm.exporter import folders
from disp_llm.exporter.cutting import compact_model, fold_into_weights
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Adapter, Compensation, Masks, Selection
from disp_llm.models.checkpoint import load_unread
from disp_llm.models.loading import load
from disp_llm.runs.provenance import hardware, versions
from disp_llm.runs.sums import read_sums, write_sums

MACHINE = MachineConfig(device="cpu", dtype="bfloat16")
KEEP, ALIGN, RANK = 0.5, 32, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--shape", default="2.5B", choices=list(SHAPES))
    parser.add_argument("--shard", default="1GB")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    asked = parser.parse_args()
    source, found = asked.folder / "model", {}
    if not source.exists():
        write_llama(asked.shape, source, torch.bfloat16, asked.shard)
    files = [path.stat().st_size for path in source.glob("*.safetensors")]
    for way in asked.ways:
        shutil.rmtree(asked.folder / way, ignore_errors=True)
        found[way] = _in_process_of_its_own(WAYS[way], source, asked.folder / way, asked.shard)
    sums = [read_sums(asked.folder / way) for way in asked.ways if way != "nothing"]
    print(
        json.dumps(
            {
                "hardware": hardware(),
                "versions": versions(),
                "bytes": sum(files),
                "files": len(files),
                "largest_file": max(files),
                "bar": int(1.2 * max(files)) + 200 * 2**20,
                "ways": found,
                "same_folders": all(one == sums[0] for one in sums) if len(sums) > 1 else None,
            },
            indent=2,
        )
    )


def _masks(dense: PrunableModel) -> Masks:
    """Random masks, scales and adapters, the same for every process."""
    layout, noise = dense.layout, torch.Generator().manual_seed(0)
    scores = torch.randn(layout.entries, generator=noise)
    scales = torch.rand(layout.entries, generator=noise) + 0.5
    shapes = [widths_of(linear) for linear in dense.linears()]
    adapters = tuple(
        Adapter(
            0.01 * torch.randn(RANK, inputs, generator=noise),
            0.01 * torch.randn(outputs, RANK, generator=noise),
        )
        for inputs, outputs in shapes
    )
    kept = project(scores, Budget(layout), KEEP, ALIGN).kept
    return Masks(layout, kept, Selection(scores, Compensation(scales, None, adapters)))


def _in_memory(source: Path, folder: Path) -> None:
    loaded = load(str(source), MACHINE, dense_only=True)
    dense = PrunableModel.of(loaded)
    masks = _masks(dense)
    with fold_into_weights(dense, masks):
        folders.write_folder(compact_model(dense, masks), loaded.tokenizer, folder)


def _streaming(source: Path, folder: Path) -> None:
    empty, checkpoint = load_unread(str(source), MACHINE)
    assert checkpoint is not None
    dense = PrunableModel.of(empty)
    folders.stream_folder(dense, _masks(dense), checkpoint.read, empty.tokenizer, folder)


def _nothing(source: Path, folder: Path) -> None:
    empty, _ = load_unread(str(source), MACHINE)
    _masks(PrunableModel.of(empty))


def _with_shards(way: Callable[[Path, Path], None], source: Path, folder: Path, shard: str) -> None:
    folders.MAX_SHARD = shard
    way(source, folder)


WAYS = {"nothing": _nothing, "memory": _in_memory, "streaming": _streaming}


def _in_process_of_its_own(
    way: Callable[[Path, Path], None], source: Path, folder: Path, shard: str
) -> dict[str, Any]:
    """Seconds and peak anonymous memory of one way; its folder has its sums then."""
    folder.mkdir()
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=_with_shards, args=(way, source, folder, shard))
    began, peak = time.perf_counter(), 0
    process.start()
    while process.is_alive():
        peak = max(peak, memory("RssAnon", process.pid))
        process.join(0.005)
    seconds = time.perf_counter() - began
    assert process.exitcode == 0, process.exitcode
    write_sums(folder)
    return {"seconds": round(seconds, 1), "peak_anonymous_bytes": peak}


if __name__ == "__main__":
    main()
