"""What the documents say is true: commands parse, files exist, generated tables are up to date."""

import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from disp_llm.cli.parsing import parse
from disp_llm.models.architectures import FAMILIES

ROOT = Path(__file__).parent.parent
TABLES = [*sorted((ROOT / "experiments" / "results").glob("*.md"))]
TABLES += [ROOT / "experiments" / "baselines" / "tables.md"]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *TABLES,
]


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in re.findall(r"```\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.splitlines():
                command = line.split("#")[0].strip()
                shortened = "…" in command and page in TABLES  # has no model in it
                if command.startswith("disp-llm ") and not shortened:
                    found.append((page.name, command.replace("…", "")))
    return found


def test_some_commands_are_documented():
    assert len(commands()) >= 4


@pytest.mark.parametrize(("page", "command"), commands())
def test_documented_command_parses(page, command):
    parse(shlex.split(command)[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_and_named_files_exist(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    named = re.findall(
        r"`((?:docs|src|tests|experiments|benchmarks|examples)/[\w./-]+\.\w+)`", text
    )
    for link in links:
        assert (page.parent / link).exists(), link
    for name in named:
        assert "NAME" in name or (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_sections_exist(page):
    for link, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
        target = page.parent / link if link else page
        titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
        anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
        assert anchor in anchors, f"{link}#{anchor}"


def test_every_room_of_the_package_is_described():
    page = (ROOT / "docs" / "how-it-works.md").read_text()
    described = re.findall(r"^\| `(\w+)/` \|", page, re.MULTILINE)
    rooms = {path.parent.name for path in (ROOT / "src" / "disp_llm").glob("*/__init__.py")}
    assert len(described) == len(set(described))
    assert set(described) == rooms
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = contract["contracts"][0]["layers"]
    assert described == list(reversed(layers))


def test_documents_count_the_architectures_that_are_known():
    log = ROOT / "docs" / "experiment-log.md"  # says what was true then
    found = [
        (page.name, number)
        for page in PAGES
        for number in re.findall(r"\b(\d+) architectures", page.read_text())
        if page != log
    ]
    assert len(found) >= 3
    assert {int(number) for _, number in found} == {len(FAMILIES)}, found


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 70
    assert max(map(len, lines)) <= 110


def test_the_readme_has_one_table():
    """Of four rows and three sizes."""
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line[:1] == "|"]
    assert [row.count("|") for row in rows] == [5] * (2 + 4)


def python_examples() -> list[tuple[str, str]]:
    return [
        (page.name, block)
        for page in PAGES
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    ]


@pytest.mark.parametrize(("page", "block"), python_examples())
def test_documented_python_imports_what_exists(page, block):
    """Rows of a table, which are no statements, and packages that are not ours are left out."""
    for module, names in re.findall(r"^from (disp_llm[\w.]*) import (.+)$", block, re.MULTILINE):
        found = __import__(module, fromlist=["x"])
        for name in names.split(","):
            assert hasattr(found, name.strip()), f"{module}.{name}"
    for name in re.findall(r"\bdisp_llm\.(\w+)\(", block):
        assert callable(getattr(__import__("disp_llm"), name))


def test_results_are_of_the_flags_in_the_files():
    sys.path.insert(0, str(ROOT / "experiments"))
    from committed import read_committed
    from run import is_of

    results = ROOT / "experiments" / "results"
    for path in sorted((ROOT / "experiments").glob("*.toml")):
        made = results / f"{path.stem}.json"
        experiment = tomllib.loads(path.read_text())
        variants = {variant["name"]: variant for variant in experiment["variant"]}
        for result in read_committed(made) if made.exists() else []:
            assert is_of(result["command"], variants[result["name"]], experiment)


def test_generated_tables_are_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "experiments" / "tables.py", "--check"],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + "run `make tables`"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments").glob("*.toml")), ids=lambda p: p.stem
)
def test_every_variant_of_every_experiment_parses(path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    from run import command_of

    experiment = tomllib.loads(path.read_text())
    names = [variant["name"] for variant in experiment["variant"]]
    assert len(set(names)) == len(names)
    for variant in experiment["variant"]:
        parse(shlex.split(command_of(variant, experiment), comments=True)[1:])
        for name in variant.get("constants", {}):
            module, _, constant = name.rpartition(".")
            assert hasattr(importlib.import_module(module), constant), name


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"^make (\w+)", page.read_text(), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
