"""`disp-llm compare`, an entry point of the group `disp_llm.commands`. Help needs no torch."""

from contextlib import closing
from typing import Any

from disp_lab.settings import CompareConfig
from disp_llm.config.plugins import Command


def run(config: CompareConfig) -> dict[str, Any]:
    """Compares methods and shows a table of them."""
    from disp_lab.comparison.compare import compare
    from disp_lab.reporting.tables import show_comparison
    from disp_llm.cli.parsing import command_line
    from disp_llm.cli.signals import StopSignals
    from disp_llm.reporting.terminal import progress_bar

    with closing(StopSignals()) as stop, progress_bar(plain_lines=True) as progress:
        result = compare(
            config, progress=stop.watching(progress), stop_requested=stop, command=command_line()
        )
    show_comparison(result)
    return result


COMPARE = Command(CompareConfig, run)
