"""`disp-llm report`."""

from typing import Any

from disp_llm.config.report import ReportConfig
from disp_llm.reporting.page import write_page
from disp_llm.reporting.terminal import say


def run(config: ReportConfig) -> dict[str, Any]:
    """Writes the page of one or several runs and says where it lies."""
    result = write_page(config)
    say(f"page    {result['file']}  ({result['bytes'] / 1e3:,.0f} kB)")
    return result
