"""`disp-llm prune`."""

from typing import Any

from disp_llm.cli.parsing import command_line
from disp_llm.cli.signals import stop_signals
from disp_llm.commands.prune import prune
from disp_llm.config.prune import PruneConfig
from disp_llm.reporting.run_tables import show_models
from disp_llm.reporting.tables import show_page
from disp_llm.reporting.terminal import progress_bar
from disp_llm.runs.folder import Run


def run(config: PruneConfig) -> dict[str, Any]:
    """Makes smaller models of a model and shows them beside it."""
    with stop_signals() as stop, progress_bar(plain_lines=True) as progress:
        result = prune(
            config.model,
            config=config,
            progress=stop.watching(progress),
            stop_requested=stop,
            command=command_line(),
        )
    if result.figures:  # of several processes, the first has them
        made = Run(result.folder)
        show_models(result.figures, made.result_file)
        show_page(made.page_file)
    return result.figures
