"""Chooses the device, data type and process to work with."""

import ctypes
import os
import platform
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.tracking import filter_trackers, get_available_trackers
from accelerate.utils import InitProcessGroupKwargs

from disp_llm.config.errors import InputError
from disp_llm.config.names import Tracker
from disp_llm.config.parts import PlaceConfig
from disp_llm.runs.job import Process
from disp_llm.runs.provenance import cpu_facts

LONGEST_WAIT = timedelta(days=1)
"""How long the other processes wait while the main one measures or lets the model write text; torch
would give up after ten minutes on GPUs."""
PATIENCE = timedelta(minutes=30)
"""How long processes wait for each other within a step."""


def start_process(machine: PlaceConfig) -> Process:
    """Returns this process, alone or one of several under `accelerate launch`, and its device."""
    accelerator = Accelerator(
        cpu=machine.device == "cpu" or not torch.cuda.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],
    )
    if accelerator.num_processes > 1:
        group = torch.distributed.new_group(timeout=PATIENCE)
        return Process(accelerator, accelerator.device, group)
    return Process(accelerator, resolve_device(machine.device))


def require_tracker(tracker: Tracker) -> None:
    """Refuses a tracker that is not installed, before any work is done."""
    if tracker != "none" and tracker not in {str(found) for found in get_available_trackers()}:
        raise InputError(
            f"{tracker} is not installed", field="track", hint=f"run `pip install {tracker}`"
        )


def start_tracking(
    process: Process, tracker: Tracker, folder: Path, settings: dict[str, Any]
) -> None:
    """Starts logging steps and figures to a tracker, through accelerate.

    Args:
        folder: for files of the tracker; the run takes its name.
        settings: settings by dotted name, as the tracker shows them.
    """
    if tracker != "none":
        accelerator = process.accelerator
        accelerator.project_configuration.set_directories(str(folder))
        accelerator.log_with = filter_trackers([tracker], str(folder))
        plain = {
            key: value if isinstance(value, int | float | str) else str(value)
            for key, value in settings.items()
        }
        named = {"name": folder.resolve().name}
        accelerator.init_trackers("disp-llm", plain, {"wandb": named, "trackio": named})


def resolve_device(name: str) -> torch.device:
    """Returns the named device; `auto` is the first GPU, or the CPU if there is none.

    Raises:
        InputError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"no device '{name}' here",
            field="device",
            hint="use auto, which takes a GPU where there is one",
        ) from error


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Returns the data type; `auto` is bfloat16 if the hardware computes in it, else float32."""
    if name == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:  # without known CPU flags: no
            native = "avx512_bf16" in cpu_facts().get("flags", "").split()
        name = "bfloat16" if native else "float32"
    return getattr(torch, name)


def dtype_name(dtype: torch.dtype) -> str:
    """Returns the name of a data type in settings and results, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def free_memory(device: torch.device) -> int:
    """Returns the bytes of free memory on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return psutil.virtual_memory().available
    except OSError:  # a Linux without /proc
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def release_freed_memory() -> None:
    """Gives freed memory back to the system, where glibc keeps it: the steps of learning reuse it
    (`keep_freed_memory`), but what follows has blocks of other sizes."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
