"""`disp-llm quantise`."""

from typing import Any

from disp_llm.config.quantise import QuantiseConfig
from disp_llm.export.compressing import quantise
from disp_llm.reporting.terminal import say


def run(config: QuantiseConfig) -> dict[str, Any]:
    """Writes the quantised folder and says how large its weights are."""
    result = quantise(config)
    size, before = (result[key] / 1e6 for key in ("bytes", "bytes_before"))
    say(f"{result['folder']}: {result['weights']}, {before:,.1f} -> {size:,.1f} MB")
    return result
