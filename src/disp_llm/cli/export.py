"""`disp-llm export`."""

from typing import Any

from disp_llm.cli.parsing import command_line
from disp_llm.commands.export_sizes import export_sizes
from disp_llm.config.export import ExportConfig
from disp_llm.reporting.run_tables import show_models
from disp_llm.reporting.tables import show_page
from disp_llm.reporting.terminal import progress_bar
from disp_llm.runs.folder import Run


def run(config: ExportConfig) -> dict[str, Any]:
    """Writes other sizes of a run and shows them."""
    with progress_bar(plain_lines=True) as progress:
        result = export_sizes(config, progress=progress, command=command_line())
    made = Run(result.folder)
    show_models(result.figures, made.result_file)
    show_page(made.page_file)
    return result.figures
