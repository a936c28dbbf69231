"""The registry of methods: what it finds, and how others add to it."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from packages import write_package

import disp_llm
from disp_llm.config.checks import check_settings
from disp_llm.config.errors import InputError
from disp_llm.config.methods import method_names
from disp_llm.config.prune import PruneConfig
from disp_llm.masks.selection import Compensation, Selection
from disp_llm.methods import Method, method_named, register

pytestmark = pytest.mark.usefixtures("no_registered_methods")

PAGE = Path(__file__).parents[2] / "docs" / "extend.md"


def constant(problem) -> Selection:
    return Selection(torch.ones(problem.budget.layout.entries))


def test_a_registered_method_is_known_by_its_name():
    with pytest.raises(InputError, match=r"^method: no method 'mine'"):
        method_named("mine")
    mine = Method("mine", "Mine", "nowhere", constant)
    register(mine)
    assert method_named("mine") is mine
    assert list(method_names())[:2] == ["learned", "fisher"]
    assert list(method_names())[-1] == "mine"
    check_settings(PruneConfig("MODEL", method="mine"))
    again = Method("mine", "Mine again", "nowhere", constant)
    register(again)
    assert method_named("mine") is again
    assert list(method_names()).count("mine") == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda count: None, "gave NoneType, not a Selection"),
        (lambda count: Selection(torch.ones(3)), r"gave importance of \(3,\), not \(\d+,\)"),
        (lambda count: Selection(torch.ones(count) / 0), "importance that are not all finite"),
        (
            lambda count: Selection(torch.ones(count), Compensation(scales=torch.ones(3))),
            r"gave scales of \(3,\), not \(\d+,\)",
        ),
        (
            lambda count: Selection(torch.ones(count), Compensation(mean_inputs=torch.ones(3))),
            r"gave mean_inputs of \(3,\), not \(\d+,\)",
        ),
    ],
)
def test_a_method_that_gives_something_else_is_refused(given, said, llama_folder, text_file):
    def choose(problem):
        return given(problem.budget.layout.entries)

    register(Method("mine", "Mine", "nowhere", choose))
    settings = {"context": 32, "windows": 1, "calibration_length": 32, "calibration_sequences": 1}
    with pytest.raises(InputError, match=f"^method: mine .*{said}"):
        disp_llm.prune(llama_folder, text=str(text_file), method="mine", **settings)


@pytest.mark.parametrize("name", ["learned", "flap"])
def test_a_name_that_is_taken_is_refused(name):
    with pytest.raises(InputError, match=f"there is a method '{name}' already"):
        register(Method(name, "Mine", "nowhere", constant))


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a package that is not ours: one module, and entry points of our group."""

    def install(source: str, entry_points: str) -> None:
        site = tmp_path / "site"
        shutil.rmtree(site, ignore_errors=True)
        write_package(site, "not_ours", source, "methods", entry_points)
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, "not_ours", raising=False)

    return install


def test_the_documented_method_works_from_a_package_that_is_not_ours(installed, problem):
    source = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    installed(source, "first_order = not_ours:METHOD")
    assert "first_order" in method_names()
    check_settings(PruneConfig("MODEL", method="first_order"))
    found = method_named("first_order")
    assert found.title == "First-order scores"
    importance = found.choose(problem).importance
    assert importance.shape == (problem.budget.layout.entries,)
    assert importance.min() >= 0
    assert importance.std() > 0
    with pytest.raises(InputError, match="there is a method 'first_order' already"):
        register(Method("first_order", "Mine", "nowhere", constant))


@pytest.mark.parametrize(
    ("entry_point", "said"),
    [
        ("broken = not_ours:NAME", r"the entry point 'broken' \(not_ours:NAME\) is no Method"),
        ("gone = not_ours:GONE", r"'gone' \(not_ours:GONE\) cannot be loaded"),
        ("lost = nowhere_at_all:METHOD", "'lost' .* cannot be loaded .No module named"),
        ("other = not_ours:METHOD", "'other' is a method that calls itself 'mine'"),
    ],
)
def test_an_entry_point_that_is_no_method_of_its_name_is_refused(installed, entry_point, said):
    source = """
from disp_llm.methods import Method
NAME = "broken"
METHOD = Method("mine", "Mine", "nowhere", lambda problem: None)
"""
    installed(source, entry_point)
    name = entry_point.split()[0]
    with pytest.raises(InputError, match=said):
        check_settings(PruneConfig("MODEL", method=name))
    check_settings(PruneConfig("MODEL"))  # it harms nothing else
