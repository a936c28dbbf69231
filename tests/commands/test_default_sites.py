"""What is cut where nobody says it: MLP channels and KV heads, or else the paper's five sites."""

import pytest

from disp_llm.commands.planning import sites_of
from disp_llm.config.names import BRANCHES, COUPLED, HEADS, SITES
from disp_llm.config.parts import BudgetConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recipes import apply_recipe, load_recipe
from disp_llm.models.architectures import FAMILIES


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_channels_and_heads_where_heads_can_go(family):
    config = PruneConfig("m")
    assert sites_of(config, family) == (COUPLED if family.can_lose_heads else SITES)
    in_time = PruneConfig("m", budget=BudgetConfig("latency", fit=(0.8,)))
    heads = (HEADS,) if family.can_lose_heads else ()
    assert sites_of(in_time, family) == (*SITES, *heads, *BRANCHES)
    assert sites_of(PruneConfig("m", for_="anywhere"), family)[0] == "mlp_mid"


@pytest.mark.parametrize("recipe", ["disp", "domain", "paper"])
def test_the_papers_sites_by_name(recipe):
    config = apply_recipe(PruneConfig("m"), load_recipe(recipe))
    assert sites_of(config, FAMILIES["llama"]) == SITES
