"""What editors and notebooks complete: every setting of a command, with its type and default."""

import inspect

import pytest
from commands_of_all import setting_paths

import disp_llm
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recover import RecoverConfig


@pytest.mark.parametrize(
    ("command", "settings"),
    [(disp_llm.prune, PruneConfig("model")), (disp_llm.recover, RecoverConfig("folder"))],
)
def test_signature_has_every_setting(command, settings):
    shown = inspect.signature(command).parameters
    missing = setting_paths(settings).keys() - shown.keys() - {"json"}
    assert not missing
    assert shown["seed"].annotation is int
    assert shown["seed"].default == 0
    assert shown["progress"].kind is inspect.Parameter.KEYWORD_ONLY
