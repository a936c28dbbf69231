"""What `disp-llm verify` can be asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from disp_llm.config.effect import check_settings
from disp_llm.config.settings import POSITIONAL


@dataclass(frozen=True)
class VerifyConfig:
    """Check that a run, a comparison or an exported folder is what it was when it was written."""

    folder: Annotated[Path, POSITIONAL]
    """The folder of a `prune`, `recover` or `compare`, or a model folder such as run/keep-0.5."""

    def validate(self) -> None:
        """Refuses a name that no file can have."""
        check_settings(self)
