"""What editors and notebooks complete: every setting of a command, with its type and default."""

import inspect

import pytest

import disp_llm
from disp_llm.cli.parsing import COMMANDS, command_of
from disp_llm.config.settings import settings_of


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"chat"}))  # which is typed
def test_the_function_of_a_command_shows_its_settings(name):
    function = getattr(disp_llm, name)
    shown = inspect.signature(function).parameters
    settings = settings_of(command_of(name).config)
    assert settings.keys() <= shown.keys()
    for setting in settings.values():
        if not (setting.is_required or setting.name in ("model", "text", "examples", "teacher")):
            assert shown[setting.name].annotation == setting.kind
            assert shown[setting.name].default == setting.default
