"""Where figures come from: versions, hardware, seed, command."""

import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("disp-llm", "torch", "transformers", "accelerate", "safetensors", "tokenizers")

CPU_INFO = Path("/proc/cpuinfo")


def provenance(seed: int, command: str) -> dict[str, Any]:
    """Versions, hardware and seed of this process, and how it was asked for."""
    return {
        "command": command,
        "seed": seed,
        "versions": versions(),
        "hardware": hardware(),
    }


def versions() -> dict[str, str]:
    """Versions of the libraries that decide what comes out."""
    return {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}


def hardware() -> dict[str, Any]:
    """What the figures were measured on."""
    info: dict[str, Any] = {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }
    if torch.cuda.is_available():
        info["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return info


def cpu_facts() -> dict[str, str]:
    """What Linux tells of the first processor (`model name`, `flags`, ...); empty elsewhere, and
    where `/proc` is not there or not readable."""
    try:
        lines = CPU_INFO.read_text().splitlines()
    except (OSError, ValueError):
        return {}
    pairs = (line.partition(":") for line in reversed(lines))  # so that the first one stays
    return {name.strip(): value.strip() for name, _, value in pairs}


def _cpu_name() -> str:
    return cpu_facts().get("model name") or platform.processor() or platform.machine()


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory that this process has held: of the GPU that it works on, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
