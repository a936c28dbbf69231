"""`disp-llm eval`."""

from typing import Any

from disp_llm.commands.eval import eval
from disp_llm.config.eval import EvalConfig
from disp_llm.reporting.tables import show_evaluation
from disp_llm.reporting.terminal import progress_bar


def run(config: EvalConfig) -> dict[str, Any]:
    """Measures a model and shows what was found."""
    with progress_bar(plain_lines=True) as progress:
        result = eval(config.model, config=config, progress=progress)
    show_evaluation(result)
    return result
