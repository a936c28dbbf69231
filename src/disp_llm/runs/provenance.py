"""Where figures come from: versions, hardware, seed, command."""

import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("disp-llm", "torch", "transformers", "accelerate", "safetensors", "tokenizers")


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


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory that this process has held: of the GPU that it works on, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
