"""Recipes and settings: every value has its declared type, every name and size is one that files
can have."""

import fresh
import pytest
from damage import BYTES, NESTED, outcome

from disp_llm.config.errors import InputError
from disp_llm.config.parts import require_sizes
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recipes import (
    apply_recipe,
    load_recipe,
    load_settings,
    resolved,
)
from disp_llm.config.recover import RecoverConfig

OTHERS = ("x", 3, 0.5, True, [], ["x", 3], {}, {"x": 1})


def tables_of(config: object) -> list[tuple[str, ...]]:
    """The places of all settings of a configuration."""
    found: list[tuple[str, ...]] = []
    for name, value in resolved(config).items():
        found += [(name, key) for key in value] if isinstance(value, dict) else [(name,)]
    return found


@pytest.mark.parametrize("config", [PruneConfig("m"), RecoverConfig("m")])
def test_a_setting_takes_its_own_type_only(config):
    """What is accepted is what then lies in the configuration, a whole number for a float too."""
    for place in tables_of(config):
        for value in OTHERS:
            tables: dict = {place[-1]: value}
            tables = {place[0]: tables} if len(place) > 1 else tables
            found = outcome(lambda tables=tables: apply_recipe(config, tables))
            if isinstance(found, InputError):
                assert found.field in place
                assert found.hint
                continue
            held = resolved(found)
            for key in place:
                held = held[key]
            empty_group = value == {} and held == resolved(config)[place[0]]
            assert held == value or empty_group, place
            assert type(held) is type(value) or (type(held), type(value)) == (float, int), place


@pytest.mark.parametrize("how", [*BYTES, "nested"])
def test_a_damaged_file_of_settings_is_one_line(tmp_path, how):
    path = tmp_path / "mine.toml"
    damaged = (
        b"x = " + NESTED if how == "nested" else BYTES[how](b"[learn]\nsteps = 7\ntemperature = 1")
    )
    path.write_bytes(damaged)
    found = outcome(lambda: load_settings(path))
    if how == "emptied":
        assert found == {}
    else:
        assert isinstance(found, InputError)
        assert str(path) in found.what
        assert "\n" not in str(found)


@pytest.mark.parametrize("text", ['base = "paper"\nkeep = 3', 'base = "paper"\nlearn = 3'])
def test_a_value_of_another_kind_over_a_base_is_one_line(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    found = outcome(lambda: apply_recipe(PruneConfig("m"), load_settings(path)))
    assert "expected" in found.what


@pytest.mark.parametrize("sizes", [(0.5, 0.5000001), (0.6, 0.3, 0.29999999)])
def test_sizes_of_one_name_are_refused(sizes):
    for field in ("keep", "target"):
        with pytest.raises(InputError, match="a size is repeated") as refused:
            require_sizes(field, sizes)
        assert refused.value.field == field
    require_sizes("keep", (0.5, 0.500001))


MADE_BY_A_PROGRAM = """
from disp_llm.config.errors import InputError
from disp_llm.config.commands import ExportConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recipes import with_settings

config = with_settings(ExportConfig("run", keep=0.65), {})
print(repr(config.run), config.keep)
for make in (
    lambda: with_settings(PruneConfig("m"), {"steps": "5"}),
    lambda: with_settings(PruneConfig("m", output_dir=3), {}),
    lambda: with_settings(PruneConfig(3), {}),
    lambda: with_settings(PruneConfig("m"), {"method": 3}),
):
    try:
        make()
    except InputError as error:
        print(f"{error.field}: {error.what}")
"""


def test_settings_of_a_program_become_what_their_fields_declare():
    """In a process whose calls nothing else checks."""
    done = fresh.run(MADE_BY_A_PROGRAM)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "PosixPath('run') (0.65,)",
        "steps: expected int, got str",
        "output_dir: expected a path, got int",
        "model: expected str, got int",
        "method: expected str, got int",
    ]


PAPER = {
    "least_cut": 0.0,
    "learn": {
        "start": "random", "parametrisation": "hypernetwork", "estimator": "reinmax", "shift": 3.0,
        "temperature": 1.0, "penalty": 6.0, "steps": 10000, "scale_rate": 0.0, "adapter_rank": 0,
    },
    "training": {
        "length": 2048, "batch": 1, "learning_rate": 1e-3, "betas": [0.9, 0.999],
        "weight_decay": 0.05, "schedule": "constant", "distill": 0.0,
    },
    "align": 1,
    "sites": ["attn_in", "attn_out", "mlp_in", "mlp_mid", "mlp_out"],
}  # fmt: skip
"""Sections 3 and 4.1 of arXiv 2410.11988."""


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("paper", {}),
        (
            "paper-released-code",
            {"estimator": "gumbel_soft", "temperature": 0.4, "penalty": 16.0},
        ),
        ("no-hypernetwork", {"parametrisation": "logits"}),
    ],
)
def test_recipes_of_the_paper_have_its_numbers(name, changes):
    found = load_recipe(name)
    assert found == PAPER | {"learn": PAPER["learn"] | changes}
