"""Numbers, words and lists that no run can use, in every setting of every command."""

import math
from dataclasses import replace
from functools import reduce
from typing import Any

import pytest
from commands_of_all import declared, least, leaves, setting_paths
from msgspec import Meta

from disp_llm.cli.parsing import all_settings, parse
from disp_llm.config.checks import check_settings
from disp_llm.config.errors import InputError
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recipes import apply_recipe, nested, with_settings

HUGE = "99999999999999999999999"
NUMBERS = [
    (command, name, number)
    for command, name, kind in declared()
    for number, _ in leaves(kind)
    if number in (int, float)
]


@pytest.mark.parametrize(("command", "name", "kind"), list(declared()))
def test_every_number_has_a_range(command, name, kind):
    """Of sizes with units, which are numbers or words, `Target` has it."""
    for number, about in leaves(kind):
        if number in (int, float) and name != "fit":
            (bound,) = (part for part in about if isinstance(part, Meta))
            assert bound.ge is not None or bound.gt is not None
            assert bound.le is not None or bound.lt is not None


@pytest.mark.parametrize(("command", "name", "kind"), NUMBERS)
def test_a_number_out_of_bounds_is_one_line(command, name, kind):
    flag = f"--{name.replace('_', '-')}"
    more = ["--budget", "bytes"] if name == "fit" and command in ("prune", "export") else []
    with pytest.raises(InputError) as refused:
        parse([*least(command, name), *more, f"{flag}={HUGE if kind is int else '1e308'}"])
    assert refused.value.field == name
    assert "\n" not in str(refused.value)


VALUES = {
    int: (10**23, -(10**23), 2**63, -1),
    float: (math.inf, -math.inf, math.nan, 1e308, -1e308),
}


@pytest.mark.parametrize("command", all_settings())
def test_python_and_toml_say_the_same(command):
    """As an option of Python, and as a line of a file."""
    config = parse(least(command))
    paths = setting_paths(config)
    for name, kind in ((name, kind) for of, name, kind in NUMBERS if of == command):
        if name == "fit":
            continue
        for value in VALUES[kind]:
            if (name, value) == ("shift", -1):
                continue
            is_list = isinstance(reduce(getattr, paths[name], config), tuple)
            given: Any = [value] if is_list else value
            for change in (
                lambda name=name, given=given: with_settings(config, {name: given}),
                lambda name=name, given=given: apply_recipe(config, nested(paths[name], given)),
            ):
                with pytest.raises(InputError, match="; give ") as refused:
                    change()
                assert refused.value.field == name


def just_outside(number: type, bound: Meta) -> list[float]:
    """The values next to those that a bound allows."""
    step = 1 if number is int else 1e-9 * max(1.0, abs(bound.le or 0))
    edges = (
        None if bound.ge is None else bound.ge - step, bound.gt,
        None if bound.le is None else bound.le + step, bound.lt,
    )  # fmt: skip
    return [edge for edge in edges if edge is not None]


@pytest.mark.parametrize("command", all_settings())
def test_what_lies_next_to_a_bound_is_refused(command):
    config = parse(least(command))
    paths, tried = setting_paths(config), 0
    for name, kind in ((name, kind) for of, name, kind in declared() if of == command):
        for number, about in leaves(kind):
            for bound in (part for part in about if isinstance(part, Meta)):
                for value in just_outside(number, bound) if number in (int, float) else ():
                    is_list = isinstance(reduce(getattr, paths[name], config), tuple)
                    with pytest.raises(InputError, match="; give ") as refused:
                        with_settings(config, {name: [value] if is_list else value})
                    assert refused.value.field == name
                    tried += 1
    assert tried or not any(of == command and n != "fit" for of, n, _ in NUMBERS)


@pytest.mark.parametrize("said", ["1e308", "1e308GB", "1e999", HUGE, f"{HUGE}B", "nan", "0", "0GB"])
@pytest.mark.parametrize("budget", ["total", "bytes", "memory", "latency", "flops"])
def test_no_target_is_out_of_bounds(budget, said):
    with pytest.raises(InputError, match="fit: "):
        parse(["prune", "m", "--budget", budget, "--fit", said])


def test_none_is_no_value():
    with pytest.raises(InputError, match="keep: expected float, got null"):
        with_settings(PruneConfig("m"), {"keep": None})
    with pytest.raises(InputError, match="steps: expected int, got null"):
        with_settings(PruneConfig("m"), {"steps": None})


def test_every_default_is_within_its_bounds():
    for command in all_settings():
        check_settings(parse(least(command)))
    for name in ("text_field", "recipe"):
        with pytest.raises(InputError, match=f"{name}: expected str of length >= 1"):
            with_settings(PruneConfig("m"), {name: ""})
    with pytest.raises(InputError, match="model: expected str of length >= 1"):
        check_settings(replace(PruneConfig("m"), model=""))
