"""Names that came from outside are text in cards and tables, whatever they look like."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from disp_lab.reporting.tables import markdown
from disp_lab.results import ComparisonRow
from disp_llm.config.errors import InputError
from disp_llm.config.schema import as_type
from disp_llm.config.texts import load_mixture, load_suite
from disp_llm.exporter.card import PLACE, write_card
from disp_llm.exporter.facts import FACTS, facts_in
from disp_llm.runs.markdown import all_escaped, escaped, in_code, printable
from disp_llm.runs.results import SizeResult, as_json

NORMAL = (
    "HuggingFaceTB/SmolLM2-135M", "org/my_model_v2", "text.txt", "a.txt, b.txt", "0.5", "1.5B",
    "5,000 documents in memory (sha256:0123456789ab)", "Intel(R) Xeon(R) CPU @ 2.80GHz", "C4",
    "the last 10% of speeches", "2.13.0+cpu", "arc_easy (dense 90.0 ± 2.0 %, chance 25 %).", "–",
)  # fmt: skip
EVIL = (
    "<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "a|b", "`x`", "```", "[x](y)",
    "](javascript:alert(1))", "![x](y)", "a\nb\n\n# c", "---", "\r\n---\r\n", "**x**", "_x_", "$x$",
    "# x", "1. x", "- x", "+ x", "===", "<!-- x", "&lt;b&gt;", "\\", "\\`", "~~~", "    x", "{0}",
    "x: y # z", "'\"", "\x1b[2J", "\u202e", "bad\udcff", "%s", "| - |\n|---|", "@x", "<a@b.c>",
    "https://x.y", "!!python/object:os.system", "\t", "",
)  # fmt: skip

reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def texts_in(source: str) -> list[str]:
    """What is shown in each paragraph, heading and cell; nothing may be more than text."""
    found = []
    for token in reader.parse(source):
        assert token.type != "html_block", source
        if token.type == "inline":
            kinds = {part.type for part in token.children}
            assert kinds <= {"text", "code_inline", "softbreak", "link_open", "link_close"}, source
            found.append("".join(part.content for part in token.children))
    return found


def assert_is_text(name: str) -> None:
    shown, here = printable(name).strip(), escaped(name)
    assert texts_in(here) == [shown] * bool(shown)
    assert texts_in(f"- b: {here}") == [f"b: {shown}".strip()]
    assert texts_in(f"| a | b |\n|---|---|\n| {here} | {here} |") == ["a", "b", shown, shown]
    assert not re.search("<[a-z/!]", here)
    code = in_code(name)
    fence = next(part for part in reader.parse(f"```\nx {code}\n```\nend") if part.type == "fence")
    assert fence.content == f"x {code}\n"


@pytest.mark.parametrize("name", [*EVIL, *NORMAL])
def test_a_name_is_text(name):
    assert_is_text(name)


@settings(max_examples=500, deadline=None)
@given(st.text(st.sampled_from("ab1 _*`~[]()!<>&|#+-=.:;/\\$\n\"'é")) | st.text())
def test_anything_is_text(name):
    assert_is_text(name)


@pytest.mark.parametrize("name", NORMAL)
def test_a_usual_name_looks_as_it_does(name):
    assert escaped(name) == in_code(name) == name


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory):
    return shutil.copytree(small_run[0] / "keep-0.5", tmp_path_factory.mktemp("card") / "model")


def card_of(folder, name: str) -> str:
    """The card of a folder of which everything that has a name bears this one."""
    facts = facts_in(folder / FACTS)
    size = as_type(facts["figures"], SizeResult, field="x", hint="")
    size = replace(size, asked=name, budget="bytes", other_parameters={name: 5})
    told = facts["result"]
    named = dict.fromkeys(("model", "revision", "text", "eval_text", "base_model", "license"), name)
    versions = dict.fromkeys(told["versions"], name)
    recovered = named | {
        "before": 2.0, "tokens_seen": 5, "distill": 1.0, "command": name,
        "weights_from": name, "eval_text_sha256": "x",
    }  # fmt: skip
    quantised = {"how": name, "layers": 2}
    result = told | {
        "source": told["source"] | named, "versions": versions, "command": name,
        "hardware": told["hardware"] | {"cpu": name}, "recovered": recovered,
        "quantised": quantised,
    }  # fmt: skip
    write_card(folder, size, result)
    return (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [one for one in EVIL if one and one.isascii()])
def test_a_card_is_built_as_one_of_usual_names(exported, name):
    """As many paragraphs, cells and blocks of code, and no link but its own."""

    def built(card: str):
        _, head, body = card.split("---\n", 2)
        tokens = reader.parse(body)
        texts_in(body)
        links = [
            part.attrs["href"] for token in tokens for part in token.children or () if part.attrs
        ]
        return [token.type for token in tokens], links, yaml.safe_load(head)

    (kinds, links, head), (wanted, wanted_links, usual) = (
        built(card_of(exported, one)) for one in (name, "usual")
    )
    assert (kinds, links) == (wanted, wanted_links)
    assert head.get("license", "") == printable(name)
    assert head.keys() | {"license", "base_model"} == usual.keys()


@pytest.mark.parametrize("name", [one for one in EVIL if one])
def test_a_comparison_is_built_as_one_of_usual_names(name):
    def built(name: str) -> list[str]:
        rows = [as_json(ComparisonRow(name, 0.5, error=f"{name} cannot"))]
        original = {
            "perplexity": 20.0,
            "perplexity_stderr": 0.5,
            "tokens": 9,
            "window": 3,
            "stride": 3,
        }
        told = {
            "asked": {"model": name, "keep": [0.5]}, "rows": rows,
            "original": {"measured": original, "parameters": 9, "block_parameters": 8},
            "source": {"model": name, "revision": name, "text": name, "eval_text": name},
        }  # fmt: skip
        page = markdown(told, "frontier.png").rpartition("![")[0]
        texts_in(page)
        return [token.type for token in reader.parse(page)]

    assert built(name) == built("usual")


def test_everything_in_a_value_is_escaped():
    value = {"<a>": ["|", 3, None], "command": "`x`"}
    assert all_escaped(value, ("command",)) == {"&lt;a&gt;": ["\\|", 3, None], "command": "'x'"}
    assert json.dumps(all_escaped({"max_logit_error": 0.5})) == '{"max_logit_error": 0.5}'
    assert escaped(PLACE) == PLACE


@pytest.mark.parametrize("load", [load_suite, load_mixture])
def test_a_variable_of_the_environment_is_not_said(load, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    file = tmp_path / "file.toml"
    file.write_text('[texts.a]\nfiles = ["$HF_TOKEN/x"]\n')
    with pytest.raises(InputError) as raised:
        load(file if load is load_mixture else str(file))
    assert "there is no $HF_TOKEN/x" in str(raised.value)
    assert "hf_of_somebody" not in str(raised.value)
