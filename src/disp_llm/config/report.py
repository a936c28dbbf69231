"""What `disp-llm report` can be asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from disp_llm.config.settings import POSITIONAL


@dataclass(frozen=True)
class ReportConfig:
    """Write one self-contained HTML page about a run, finished or not."""

    run: Annotated[Path, POSITIONAL]
    """The run folder."""
    output: Path | None = None
    """File of the page. Default: report.html in the run folder."""
    anyway: bool = False
    """Show files that have changed."""
