"""`disp-llm recover`."""

from typing import Any

from disp_llm.cli.parsing import command_line
from disp_llm.cli.signals import stop_signals
from disp_llm.commands.recover import recover
from disp_llm.config.recover import RecoverConfig
from disp_llm.reporting.run_tables import show_recovery
from disp_llm.reporting.terminal import progress_bar
from disp_llm.runs.folder import Run


def run(config: RecoverConfig) -> dict[str, Any]:
    """Trains a pruned model and shows what that won back."""
    with stop_signals() as stop, progress_bar(plain_lines=True) as progress:
        result = recover(
            config.folder,
            config=config,
            progress=stop.watching(progress),
            stop_requested=stop,
            command=command_line(),
        )
    if result.figures:  # of several processes, the first has them
        show_recovery(result.figures, Run(result.folder).result_file)
    return result.figures
