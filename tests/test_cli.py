"""Help, start-up cost and the shape of the package."""

import ast
import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import environment, run_command

import disp_llm
from disp_llm.cli import parse
from disp_llm.config import (
    InputError,
    PruneConfig,
    apply_recipe,
    load_recipe,
    recipe_names,
    resolved,
)

SOURCE = Path(disp_llm.__file__).parent
COMMANDS = [
    "prune", "export", "recover", "compare", "report", "eval", "doctor", "bench", "save", "push",
    "gguf",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command):
    done = run_command(command, "--help")
    assert done.returncode == 0
    assert "--json" in done.stdout
    for line in done.stdout.splitlines():
        assert "MISSING" not in line


def test_help_lists_every_command_and_is_shown_for_no_arguments():
    for arguments in (["--help"], []):
        done = run_command(*arguments)
        assert done.returncode == 0
        assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("arguments", [["--help"], ["prune", "--help"], ["prune", "x", "--nope"]])
def test_help_and_usage_errors_import_neither_torch_nor_transformers(arguments):
    script = (
        "import sys\nfrom disp_llm.cli import parse\n"
        "try:\n    parse(sys.argv[1:])\nexcept (SystemExit, ValueError):\n    pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'accelerate'} & set(sys.modules)\n"
        "print('heavy:', heavy or 'none')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True, text=True, timeout=60, env=environment(), check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "heavy: none"


def test_unknown_command_is_one_line():
    done = run_command("prun", "x")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_applies(name):
    config = parse(["prune", "x", "--recipe", name])
    assert config == apply_recipe(PruneConfig(model="x", recipe=name), load_recipe(name))
    assert parse(["prune", "x", "--recipe", name, "--steps", "7"]).learn.steps == 7


def test_recipe_file_with_a_typo_names_the_right_key(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[learn]\nlerning_rate = 0.1\n")
    with pytest.raises(InputError, match="nearest: learning_rate"):
        parse(["prune", "x", "--recipe", str(path)])
    path.write_text('[learn]\nlearning_rate = "fast"\n')
    with pytest.raises(InputError, match=r"learn\.learning_rate"):
        parse(["prune", "x", "--recipe", str(path)])
    for line, said in (
        ('[learn]\nstart = "score"', "one of scores, random"),
        ('[learn]\nestimator = "projectd"', "projected"),
        ('keep = ["a"]', "a float"),
        ("[text]\ntext = [3]", "a Path"),
    ):
        path.write_text(line)
        with pytest.raises(InputError, match=said):
            parse(["prune", "x", "--recipe", str(path)])


def test_a_recipe_stands_on_its_base(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "paper"\nkeep = [0.7]\n[learn]\nsteps = 9\n')
    paper, mine = (parse(["prune", "x", "--recipe", str(name)]) for name in ("paper", path))
    assert mine.keep == (0.7,)
    assert mine.learn == replace(paper.learn, steps=9)
    path.write_text('base = "papper"\n')
    with pytest.raises(InputError, match="nearest: paper"):
        parse(["prune", "x", "--recipe", str(path)])


def test_config_survives_its_file(tmp_path):
    import tomli_w

    from disp_llm.runs import stored_config

    config = parse(["prune", "x", "--keep", "0.8", "0.5", "--text", "a", "b", "--steps", "9"])
    (tmp_path / "config.toml").write_text(tomli_w.dumps(resolved(config)))
    assert stored_config(tmp_path) == config


def modules() -> list[str]:
    paths = sorted(SOURCE.rglob("*.py"))
    names = [".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_every_module_imports(name):
    importlib.import_module(name)


def test_every_module_and_public_function_says_what_it_does():
    silent = []
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            silent.append(path.name)
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"
            if public and not ast.get_docstring(node):
                silent.append(f"{path.name}:{node.name}")
    assert not silent


def test_exported_files_stand_alone():
    """What lies in an exported folder may import torch, transformers and its sibling only."""
    for path in (SOURCE / "compact").glob("*_disp_llm.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= {"torch", "transformers"}
            elif isinstance(node, ast.ImportFrom):
                assert node.module in ("typing", "torch", "configuration_disp_llm")
