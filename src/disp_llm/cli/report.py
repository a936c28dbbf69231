"""`disp-llm report`."""

from pathlib import Path
from typing import Any

from disp_llm.config.report import ReportConfig
from disp_llm.reporting.page import write_page
from disp_llm.reporting.tables import show_page


def run(config: ReportConfig) -> dict[str, Any]:
    """Writes the page of one or several runs and says where it lies."""
    result = write_page(config)
    show_page(Path(result["file"]))
    return result
