"""How much of the package a plain `prune` runs, as the README says it."""

import re
import subprocess
import sys
from pathlib import Path

from conftest import environment
from small import SMALL, settled

ROOT = Path(__file__).parents[2]

COUNT = """
import atexit, sys
from pathlib import Path

def count():
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    ours = [file for file in files if file and Path(file).parent.is_relative_to(sys.argv_package)]
    print("disp_lab" in sys.modules, sum(len(open(file).readlines()) for file in ours))

atexit.register(count)
from disp_llm.cli.main import main
main()
"""


def test_prune_imports_as_many_lines_as_the_readme_says(llama_folder, text_file, tmp_path):
    script = COUNT.replace("sys.argv_package", repr(str(ROOT / "src" / "disp_llm")))
    command = ["prune", llama_folder, "--text", text_file, "--output-dir", tmp_path / "run", *SMALL]
    done = subprocess.run(
        [sys.executable, "-c", script, *settled(command)],
        capture_output=True, text=True, check=True, env=environment(),
    )  # fmt: skip
    with_lab, lines = done.stdout.split()[-2:]
    (said,) = re.findall(r"([\d,]+) lines run to make a folder", (ROOT / "README.md").read_text())
    assert with_lab == "False"
    assert abs(int(lines) / int(said.replace(",", "")) - 1) < 0.03
