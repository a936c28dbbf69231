"""Where figures come from: versions, commit, hardware, seed, command, date."""

import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from disp_llm.runs.results import Hardware, Provenance

LIBRARIES = ("disp-llm", "torch", "transformers", "accelerate", "safetensors", "tokenizers")

CPU_INFO = Path("/proc/cpuinfo")

CHECKOUT = Path(__file__).parents[3]
"""Root of the git checkout: three folders above `src/disp_llm/runs`."""


def provenance(seed: int, command: str) -> Provenance:
    """Returns versions, commit, hardware and seed of this process, its command, and the time."""
    return {
        "command": command,
        "seed": seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(),
    }


@cache  # the code that runs is that of the first call, whatever is checked out afterwards
def commit() -> str:
    """Returns the commit of disp-llm, with `-dirty` if its code has changed since; empty outside of
    a git checkout."""
    if not (CHECKOUT / ".git").exists():
        return ""
    found = _git("rev-parse", "HEAD")
    return f"{found}-dirty" if found and _git("status", "--porcelain", "--", "src") else found


def _git(*arguments: str) -> str:
    """Returns what git says of the checkout; empty if git is missing or refuses."""
    try:
        done = subprocess.run(
            ["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that influence results."""
    return {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}


def hardware() -> Hardware:
    """Returns the machine that figures are measured on."""
    info: Hardware = {
        "cpu": cpu_facts().get("model name") or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }
    if torch.cuda.is_available():
        info["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return info


def cpu_facts() -> dict[str, str]:
    """Returns what Linux tells of the first CPU (`model name`, `flags`, ...); empty elsewhere."""
    try:
        lines = CPU_INFO.read_text().splitlines()
    except (OSError, ValueError):
        return {}
    pairs = (line.partition(":") for line in reversed(lines))  # the first processor stays
    return {name.strip(): value.strip() for name, _, value in pairs}


def peak_memory_bytes(device: torch.device) -> int:
    """Returns the most memory that this process has held: of its GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
