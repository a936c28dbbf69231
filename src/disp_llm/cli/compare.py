"""`disp-llm compare`."""

from typing import Any

from disp_llm.cli.parsing import command_line
from disp_llm.cli.signals import stop_signals
from disp_llm.commands.compare import compare
from disp_llm.config.compare import CompareConfig
from disp_llm.reporting.score_tables import show_comparison
from disp_llm.reporting.terminal import progress_bar


def run(config: CompareConfig) -> dict[str, Any]:
    """Compares methods and shows a table of them."""
    with stop_signals() as stop, progress_bar(plain_lines=True) as progress:
        result = compare(
            config, progress=stop.watching(progress), stop_requested=stop, command=command_line()
        )
    show_comparison(result)
    return result
