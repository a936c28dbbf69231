"""The page of a run."""

from pathlib import Path
from typing import Any

from disp_llm.commands.caller import Caller, takes
from disp_llm.config.checks import check_settings
from disp_llm.config.commands import ReportConfig
from disp_llm.reporting.page import write_run_page
from disp_llm.runs.folder import Run


@takes(ReportConfig)
def report(run: ReportConfig | str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Writes the page of a run, one HTML file that stands alone; where it lies, and its bytes.

    Args:
        run: the run folder, or all settings at once.
        options: settings by the names of their flags.
    """
    _, config = Caller.asking(ReportConfig, run, options)
    check_settings(config)
    path = write_run_page(Run(config.run, config.anyway), config.output)
    return {"file": str(path), "bytes": path.stat().st_size}
