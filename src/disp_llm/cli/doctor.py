"""`disp-llm doctor`."""

from typing import Any

from disp_llm.commands.doctor import doctor
from disp_llm.config.doctor import DoctorConfig
from disp_llm.reporting.tables import show_examination
from disp_llm.reporting.terminal import progress_bar


def run(config: DoctorConfig) -> dict[str, Any]:
    """Examines a model and shows what pruning it would mean."""
    with progress_bar(plain_lines=True) as progress:
        result = doctor(config, progress=progress)
    show_examination(result)
    return result
