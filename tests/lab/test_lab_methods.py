"""What the lab adds: its methods, its baselines, and what learning can begin at."""

import re

import pytest
import torch
from conftest import problem_of, with_config

from disp_lab.baselines import ALL
from disp_lab.names import BASELINES, MASKS, mask_methods
from disp_lab.settings import CompareConfig
from disp_lab.variants import VARIANTS, compared_methods
from disp_llm.commands.planning import require_possible
from disp_llm.config.checks import check_settings
from disp_llm.config.errors import InputError
from disp_llm.config.learning import LearnConfig, TrainingConfig
from disp_llm.config.methods import method_names
from disp_llm.config.prune import PruneConfig
from disp_llm.methods import Method, method_named, register

pytestmark = pytest.mark.usefixtures("no_registered_methods")


@pytest.fixture
def problem(text_file, tmp_path):
    found = problem_of("llama", text_file.read_text(), tmp_path, heads=True)
    return with_config(found, learn=LearnConfig(steps=2), training=TrainingConfig(length=24))


def test_everything_that_is_named_is_there_in_the_order_of_the_table():
    assert mask_methods() == MASKS
    assert set(method_names()) == set(MASKS)
    assert compared_methods() == (*MASKS, *VARIANTS, *BASELINES)


def test_a_file_holds_what_it_is_named_after():
    for name, found in ({name: method_named(name) for name in method_names()} | ALL).items():
        assert found.name == name
        assert found.title
        assert re.search(r"arXiv \d{4}\.\d{5}|this project|none", found.reference), name


@pytest.mark.parametrize("name", ["masks_only", "mpo"])
def test_a_method_that_is_called_like_a_row_is_refused(name):
    register(Method(name, "Mine", "nowhere", lambda problem: None))
    with pytest.raises(InputError, match=f"methods: '{name}' is a row already"):
        check_settings(CompareConfig("MODEL"))


@pytest.mark.parametrize("name", [name for name in MASKS if name != "reap"])  # of mixtures alone
def test_every_method_gives_every_entry_a_finite_importance(problem, name):
    found = method_named(name).choose(problem)
    assert found.importance.shape == (problem.budget.layout.entries,)
    assert torch.isfinite(found.importance).all()


@pytest.mark.parametrize("name", ["greedy", "mpo"])
def test_a_baseline_is_no_method_to_prune_by(name):
    with pytest.raises(InputError, match=f"method: no method '{name}'"):
        checked(PruneConfig("MODEL", method=name))


def checked(config: PruneConfig) -> None:
    """What `prune` refuses before it loads anything, and before it makes a folder."""
    check_settings(config)
    require_possible(config, config.sizes)
