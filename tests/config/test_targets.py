"""Sizes as they are asked for: what is written is read, and what cannot be meant is one line."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disp_llm.config.errors import InputError
from disp_llm.config.parts import BudgetConfig
from disp_llm.config.targets import COUNTED, UNITS, Target, budgets_of

amounts = st.floats(1e-3, 1e6).map(lambda amount: float(f"{amount:.6g}"))
units = st.sampled_from(sorted(UNITS))


@given(amounts, units, st.sampled_from(["", " ", "  "]), st.sampled_from([str, str.lower]))
def test_what_is_written_is_read(amount, unit, space, spelt):
    """However the unit is spelt; and its name is read as the same again."""
    found = Target.of(f"{amount:f}".rstrip("0") + space + spelt(unit))
    assert found.unit == unit
    assert found.amount == pytest.approx(amount, rel=1e-3)
    assert Target.of(found.name) == Target.of(str(found)) == found
    assert found.value == found.amount * UNITS[unit][1]


@given(st.floats(1e-6, 1.0))
def test_a_number_is_a_share(share):
    for said in (share, f"{share:.15f}"):
        found = Target.of(said)
        assert (found.unit, found.counts) == ("", "shares")
        assert found.amount == pytest.approx(share, abs=1e-15)
        assert found.name == f"{found.amount:g}"


@given(st.floats(1e-6, 1e15), units)
def test_what_a_message_says_can_be_asked_for(value, unit):
    """To four digits, the smallest rounded up, so that it is no less than that."""
    target = Target(1.0, unit)
    near, least = (Target.of(target.like(value, at_least=up)) for up in (False, True))
    assert near.unit == least.unit == unit
    assert value * (1 - 1e-12) <= least.value <= value * 1.0011
    assert math.isclose(near.value, value, rel_tol=5.1e-4)


@pytest.mark.parametrize("said", ["6GB", "5.5GiB", "512 MB", "80ms", ".4s", "1.2B", "700m", "1tb"])
def test_sizes_as_people_write_them(said):
    target = Target.of(said)
    assert target.unit
    assert " or ".join(kind for kind in COUNTED if COUNTED[kind] == target.counts) == budgets_of(
        target
    )


REFUSED = [
    ("memory", ("80ms",), "80ms is in seconds, and memory counts bytes; give a number in (0, 1], "
     "or bytes such as 6GB, or a `budget` of latency"),
    ("latency", ("6gb",), "6GB is in bytes, and latency counts seconds; give a number in (0, 1], "
     "or seconds such as 80ms, or a `budget` of bytes or memory"),
    ("total", ("6GB",), "6GB is in bytes, and total counts parameters; give a number in (0, 1], or "
     "parameters such as 700M, or a `budget` of bytes or memory"),
    ("flops", ("700M",), "700M is in parameters, and flops takes shares alone; give a number in "
     "(0, 1], or a `budget` of total"),
    ("active", ("3B",), "3B is in parameters, and active takes shares alone; give"),
    ("memory", (6.0,), "6 is not a share; give a number in (0, 1], or bytes such as 6GB"),
    ("memory", ("6",), "6 is not a share; give a number in (0, 1], or bytes such as 6GB"),
    ("memory", (math.nan,), "nan is not a share"),
    ("memory", ("0GB",), "0GB is nothing"),
    ("memory", ("6XB",), "'6XB' is neither a share nor a number with a unit that is known; give"),
    ("memory", ("-6GB",), "'-6GB' is neither"),
    ("memory", ("",), "'' is neither"),
    ("memory", ("6GB", "6 gb"), "a size is repeated"),
    ("memory", ("6GB", 0.5, 0.5), "a size is repeated"),
    ("memory", (), "no size is given"),
    ("params", ("80ms", "6GB"), "6GB is in bytes, and latency counts seconds"),
    ("params", (1.5,), "1.5 is not a share; give a number in (0, 1], or bytes such as 6GB"),
    ("params", (0.5, 0.4), "tokens and bits are decided for one size; give one, or name a"),
]  # fmt: skip


@pytest.mark.parametrize(("budget", "target", "said"), REFUSED)
def test_a_target_that_cannot_be_meant_is_refused(budget, target, said):
    with pytest.raises(InputError) as refused:
        BudgetConfig(budget, target).require_sizes((0.5,))
    assert str(refused.value).startswith(f"fit: {said}")


@pytest.mark.parametrize(
    ("fit", "kind", "decides"),
    [
        (("100MB",), "bytes", True),
        ((0.4,), "bytes", True),
        (("300M",), "total", True),
        (("80ms", "90ms"), "latency", False),
        ((), "params", False),
    ],
)
def test_an_amount_alone_says_what_it_counts(fit, kind, decides):
    alone = BudgetConfig(fit=fit)
    alone.require_sizes((0.5,))
    assert (alone.kind, alone.decides) == (kind, decides)
    named = BudgetConfig("memory", fit)
    assert (named.kind, named.decides) == ("memory", False)


def test_a_time_is_of_one_thing():
    both = BudgetConfig("latency", (0.5,), workload=("prefill", "decode"))
    both.require_sizes(())
    with pytest.raises(InputError, match="80ms is the time of one thing, and prefill and decode"):
        BudgetConfig("latency", ("80ms",), workload=("prefill", "decode")).require_sizes(())


def test_names_of_sizes_have_what_was_asked_for():
    memory = BudgetConfig("memory", ("5.50GiB", 0.6), workload_length=8192, workload_batch=8)
    assert list(map(memory.size_name, memory.sizes(()))) == [
        "memory-8192x8-5.5GiB",
        "memory-8192x8-0.6",
    ]
    latency = BudgetConfig("latency", ("80ms",))
    assert latency.size_name(*latency.sizes(())) == "latency-prefill-512-80ms"
    assert BudgetConfig().size_name(Target(0.123456789)) == "0.123457"
    names = {Target.of(f"{amount}MB").name for amount in (1234567, 1234568)}
    assert len(names) == 2
