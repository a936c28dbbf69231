"""`disp-llm save` and `disp-llm push`."""

from typing import Any

from disp_llm.config.share import PushConfig, SaveConfig
from disp_llm.export.sharing import push, save
from disp_llm.reporting.terminal import say


def run(config: SaveConfig | PushConfig) -> dict[str, Any]:
    """Copies or uploads an exported folder and says where it lies."""
    if isinstance(config, SaveConfig):
        result = save(config)
        say(f"{result['folder']}: {result['bytes'] / 1e6:,.1f} MB")
    else:
        result = push(config)
        say(f"{result['url']} ({result['commit']})")
    return result
