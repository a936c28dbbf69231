"""`disp-llm push`."""

from typing import Any

from disp_llm.commands.convert import push
from disp_llm.config.convert import PushConfig
from disp_llm.reporting.terminal import say


def run(config: PushConfig) -> dict[str, Any]:
    """Uploads the folder and says where it lies."""
    result = push(config)
    say(f"{result['url']} ({result['commit']})")
    return result
