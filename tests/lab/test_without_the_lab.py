"""The product needs nothing of the lab."""

import json
import re
import subprocess
import sys
from pathlib import Path

import fresh
import pytest

PRODUCT = Path(__file__).parents[2] / "src" / "disp_llm"

ALONE = """
import importlib.metadata, sys
sys.modules["disp_lab"] = None
entry_points = importlib.metadata.entry_points
importlib.metadata.entry_points = lambda **of: [
    entry for entry in entry_points(**of) if not entry.value.startswith("disp_lab")
]
"""
"""What a process begins with that has no lab."""

BROKEN = """
import sys
sys.modules["disp_lab"] = None
"""
"""The same where the entry points are left."""


@pytest.mark.parametrize("path", sorted(PRODUCT.rglob("*.py")), ids=lambda path: path.stem)
def test_no_module_of_the_product_names_the_lab_in_code(path):
    assert not re.search(r"(import|from) disp_lab|[\"']disp_lab", path.read_text())


@pytest.mark.parametrize("before", [ALONE, BROKEN])
def test_prune_works_without_the_lab(before, llama_folder, text_file, tmp_path):
    flags = "--keep 0.5 --steps 2 --length 32 --batch 1 --calibration-sequences 2 --rounds 0"
    done = fresh.start_command(
        "prune", llama_folder, "--text", text_file, *flags.split(), "--calibration-length", 32,
        "--windows", 1, "--context", 32, "--output-dir", tmp_path / "run", "--json", before=before,
    ).wait()  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["models"][0]["keep"] == pytest.approx(0.5, abs=0.05)
    assert "compare" not in done.stderr  # nobody has named it
    listed = fresh.start_command("--help", before=before).wait()
    said = "'compare' (disp_lab.command:COMPARE) cannot be loaded" in listed.stderr
    assert (listed.returncode, said) == (0, before == BROKEN)


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"]])
def test_help_lists_what_the_lab_adds_and_loads_no_torch(arguments):
    told = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules))"
    script = f"{told}; from disp_llm.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    assert "Methods side by side" in " ".join(done.stdout.split())
    assert done.stdout.splitlines()[-1] == "False"
