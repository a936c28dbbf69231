"""`disp-llm convert` and `disp-llm push`."""

from typing import Any

from disp_llm.commands.convert import convert, push
from disp_llm.config.convert import ConvertConfig, PushConfig
from disp_llm.reporting.terminal import progress_bar, say


def run(config: ConvertConfig | PushConfig) -> dict[str, Any]:
    """Writes or uploads an exported folder and says where it lies."""
    if isinstance(config, PushConfig):
        result = push(config)
        say(f"{result['url']} ({result['commit']})")
    else:
        with progress_bar(plain_lines=True) as progress:
            result = convert(config, progress=progress)
        say(f"{result['folder']}: {result['to']}, {result['bytes'] / 1e6:,.1f} MB")
    return result
