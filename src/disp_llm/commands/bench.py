"""Speed, memory and load time of a folder against its original."""

import logging
import os
import pickle
import subprocess
import sys
import time
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from disp_llm.commands.api import called, takes
from disp_llm.config.commands import BenchConfig
from disp_llm.config.errors import InputError, model_is
from disp_llm.config.parts import PlaceConfig
from disp_llm.evaluation.benchmark import side_by_side
from disp_llm.evaluation.timing import Workload, fitted, runner
from disp_llm.exporter.exported import require_original
from disp_llm.exporter.folders import weight_bytes
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.devices import dtype_name, resolve_device, resolve_dtype
from disp_llm.models.loading import (
    family_of_any,
    load,
    load_config,
    load_model,
    require_unquantised,
)
from disp_llm.runs.provenance import hardware, peak_memory_bytes, versions

logger = logging.getLogger(__name__)


@takes(BenchConfig)
def bench(model: BenchConfig | str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Measures a folder against its original, or against the model that `against` names."""
    call = called(BenchConfig, model, options)
    config = call.config
    against = config.against or require_original(config.model)
    asked = {"against": against, "model": config.model}
    names, alone = list(asked.values()), []
    for field, name in asked.items():  # before either is loaded, which takes long
        with model_is(field):
            require_unquantised(name, load_config(name))  # it would be timed unpacked
    for field, name in asked.items():
        with model_is(field):
            alone.append(in_own_process(name, config.machine, max(config.length)))
    targets = [_target(name, config) for name in names]
    workloads = _workloads(config, targets)
    with call.watching() as progress:
        rows, comparisons = side_by_side(targets, names, workloads, config.rounds, progress)
    # One comparison per phase: the longest prefill and the smallest decode batch.
    told = [
        max((c for c in comparisons if c["phase"] == "prefill"), key=itemgetter("length")),
        min((c for c in comparisons if c["phase"] == "decode"), key=itemgetter("batch")),
    ]
    peaks = {name: own["peak_memory_bytes"] for name, own in zip(names, alone, strict=True)}
    return {
        "model": config.model,
        "against": names[0],
        "dtype": dtype_name(targets[0].dtype),
        "compiled": config.compile,
        "rounds": config.rounds,
        "results": [row | {"peak_memory_bytes": peaks[row["model"]]} for row in rows],
        "comparisons": comparisons,
        "speedup": {c["phase"]: c["speedup"] for c in told},
        "predicted_speedup": {c["phase"]: c["predicted_speedup"] for c in told},
        "loading": [{"model": name} | own for name, own in zip(names, alone, strict=True)],
        "hardware": hardware(),
        "versions": versions(),
    }


def _target(name: str, config: BenchConfig) -> PrunableModel:
    """Loads a model as it is to be timed: compiled if asked for."""
    target = PrunableModel.of(load(name, config.machine))
    if config.compile:
        target.model.forward = torch.compile(target.model.forward, dynamic=True)
    return target


def _workloads(config: BenchConfig, targets: list[PrunableModel]) -> list[Workload]:
    """Returns the workloads as asked for, shortened to what all models can read."""
    wanted = [Workload("prefill", length, 1) for length in config.length]
    wanted += [Workload("decode", config.context, batch) for batch in config.batch]
    workloads = [fitted(workload, *(target.model for target in targets)) for workload in wanted]
    if workloads != wanted:
        most = max(workload.length for workload in workloads)
        logger.warning(
            "the models read no more than %d tokens and one: nothing longer is timed", most
        )
    return list(dict.fromkeys(workloads))


def in_own_process(name: str, machine: PlaceConfig, length: int) -> dict[str, Any]:
    """Measures load time (configuration and weights), peak memory, parameters and weight bytes in a
    process that does nothing else. That is a fresh interpreter, since `multiprocessing` would run
    the caller's script once more."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {__name__} as here; here.{_answer.__name__}()"],
        input=pickle.dumps((name, machine, length)),
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    if done.returncode:
        raise InputError(
            f"cannot load '{name}' in a process of its own, which ended with {done.returncode}",
            field="model",
            hint="see the lines above; where it is -9, free memory or name a smaller model",
        )
    found = pickle.loads(done.stdout)
    if isinstance(found, InputError):
        raise found
    return found


def _answer() -> None:
    """Runs in that process: reads its task from standard input, answers on standard output."""
    asked, output = pickle.load(sys.stdin.buffer), os.dup(1)
    os.dup2(2, 1)  # the answer must not mix with what libraries print
    try:
        found = _load_and_run(*asked)
    except InputError as error:
        found = error
    with os.fdopen(output, "wb") as answer:
        answer.write(pickle.dumps(found))


def _load_and_run(name: str, machine: PlaceConfig, length: int) -> dict[str, Any]:
    device = resolve_device(machine.device)
    began = time.perf_counter()
    model = load_model(name, device, resolve_dtype(machine.dtype, device))
    seconds = time.perf_counter() - began
    runner(model, fitted(Workload("prefill", length, 1), model))()
    parameters = PrunableModel(model, family_of_any(model.config)).parameters
    on_disk = weight_bytes(Path(name)) if Path(name).is_dir() else None
    return {
        "load_s": seconds,
        "peak_memory_bytes": peak_memory_bytes(model.device),
        "parameters": parameters,
        "weight_bytes": on_disk or parameters * model.dtype.itemsize,
    }
