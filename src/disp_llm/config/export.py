"""What `disp-llm export` can be asked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from disp_llm.config.bounds import Size
from disp_llm.config.effect import check_settings
from disp_llm.config.errors import InputError
from disp_llm.config.parts import KEEP_OR_TARGET, BudgetConfig
from disp_llm.config.settings import POSITIONAL
from disp_llm.config.targets import Target


@dataclass(frozen=True)
class ExportConfig:
    """Write another size of a run that has learned, without learning again."""

    USES: ClassVar = (KEEP_OR_TARGET,)

    run: Annotated[Path, POSITIONAL]
    """The run folder."""
    keep: tuple[Size, ...] = ()
    """Share of block parameters to keep, in (0, 1]."""
    no_measure: bool = False
    """Write the model and run nothing. The folder is made tensor by tensor; the same command
    without this flag measures it later."""
    anyway: bool = False
    """Go on although the model or a file has changed."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    device: str = "auto"
    """Device to run on: cpu, cuda, ...; everything else is taken from the run."""

    @property
    def sizes(self) -> tuple[Target, ...]:
        """The sizes that are to be written, of what the budget limits."""
        return self.budget.sizes(self.keep)

    def validate(self) -> None:
        """Refuses sizes that no model has."""
        check_settings(self)
        if self.no_measure and self.budget.budget == "latency":
            raise InputError(
                "cannot be met without measuring",
                field="budget",
                hint="leave `no_measure` out, or give another budget",
            )
        self.budget.validate(self.keep)
