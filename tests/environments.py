"""Virtual environments for proofs with other versions and other engines."""

import subprocess
import sys
from pathlib import Path

from disp_llm.evaluation.latency import cache_folder

CACHE = cache_folder().parent / "proof"


def make_environment(folder: Path, *requirements: object, beside: Path | None = None) -> Path:
    """A virtual environment with these packages; its Python.

    Args:
        beside: the Python of another environment, whose packages are seen where the new one has
            none of that name.
    """
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    if beside is not None:
        (_packages(python) / "beside.pth").write_text(f"{_packages(beside)}\n")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *map(str, requirements)], check=True)
    return python


def _packages(python: Path) -> Path:
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    done = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())
