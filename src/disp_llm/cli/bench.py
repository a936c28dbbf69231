"""`disp-llm bench`."""

from typing import Any

from disp_llm.commands.bench import bench
from disp_llm.config.bench import BenchConfig
from disp_llm.reporting.tables import show_bench
from disp_llm.reporting.terminal import progress_bar


def run(config: BenchConfig) -> dict[str, Any]:
    """Times two models and shows them side by side."""
    with progress_bar(plain_lines=True) as progress:
        result = bench(config, progress=progress)
    show_bench(result)
    return result
