"""Help, start-up cost and the shape of the package."""

import ast
import importlib
import json
import shlex
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w
import torch
from conftest import must_refuse, must_run, run_command

import disp_llm
from disp_llm.cli.errors import explained, flags_of, print_error, with_flags
from disp_llm.cli.flags import extras_of, usual_settings_of
from disp_llm.cli.main import _how_to_resume
from disp_llm.cli.parsing import all_settings, command_line, parse
from disp_llm.cli.signals import StopSignals
from disp_llm.config.errors import InputError
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recipes import apply_recipe, load_recipe, recipe_names, resolved
from disp_llm.config.settings import settings_of
from disp_llm.reporting.terminal import progress_bar

SOURCE = Path(disp_llm.__file__).parent
COMMANDS = [
    "prune", "export", "recover", "compare", "report", "eval", "doctor", "bench", "convert", "push",
    "verify", "generate", "chat",
]  # fmt: skip
USUAL, ALL = 20, 83
"""Most settings that a short help lists, and that all commands have together."""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command):
    done = must_run(command, "--help")
    assert "--json" in done.stdout
    assert "MISSING" not in done.stdout
    assert "(default: )" not in done.stdout


def test_help_lists_every_command_and_is_shown_for_no_arguments():
    for arguments in (["--help"], []):
        done = must_run(*arguments)
        assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("arguments", [["--help"], ["prune", "--help"], ["prune", "x", "--nope"]])
def test_help_and_usage_errors_import_neither_torch_nor_transformers(arguments):
    script = (
        "import sys\nfrom disp_llm.cli.parsing import parse\n"
        "try:\n    parse(sys.argv[1:])\nexcept (SystemExit, ValueError):\n    pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'accelerate'} & set(sys.modules)\n"
        "print('heavy:', heavy or 'none')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "heavy: none"


def test_unknown_command_is_one_line():
    done = must_refuse("prun", "x")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prune", "x", "--stepz", "5"], "--stepz: is no option (nearest: --steps); see disp-llm"),
        (["prune", "x", "--dry-run"], "--dry-run: is no option; see disp-llm prune --help-all"),
        (["prune", "x", "--pruning-ratio", "0.3"], "--pruning-ratio: is no option; give the share"),
        (["prune", "x", "--sparsity", "0.3"], "give the share that stays: a sparsity of 0.3"),
        (["prune", "x", "--steps", "5", "6"], "disp-llm: prune: '6' belongs to no option; see"),
        (["prune", "x", "--steps", "5.5"], "--steps: '5.5' is not a whole number; correct it"),
        (["prune", "x", "--schedule", "flat"], "'flat' is not one of cosine, linear, constant"),
        (["prune", "x", "--keep"], "argument --keep: expected at least one argument; see disp"),
        (["prune", "x", "--config", "no.toml"], "--config: cannot read no.toml (No such file"),
        (["prune", "x", "--weight-optimizer", "muon"], "--weight-optimizer: steps weights, and"),
        (["prune", "x", "--output-dir", ""], "--output-dir: an empty word; leave it out"),
        (["prune", "x", "--text", ""], "--text: an empty word; leave it out"),
        (["prune"], "MODEL: is missing; see disp-llm prune --help"),
        (
            ["prune", "x", "--workload-length", "8192", "--budget", "bytes", "--fit", "6GB"],
            "--workload-length: is of a --budget of latency or memory, and bytes does not use it; "
            "leave it out, or name such a --budget",
        ),
        (
            ["export", "x", "--keep", "0.5", "--workload", "decode"],
            "--workload: is of a --budget of latency, and params does not use it; leave it out",
        ),
        (
            ["recover", "x", "--teacher", "y", "--distill", "0", "--text", "f.txt"],
            "--teacher: would neither teach nor write; leave it out, or let --dist",
        ),
        (["eval", "x", "--limit", "3"], "--limit: counts questions, and none is asked; leave"),
        (
            ["prune", "x", "--budget", "memory", "--fit", "80ms"],
            "--fit: 80ms is in seconds, and memory counts bytes; give a number in (0, 1], or "
            "bytes such as 6GB, or a --budget of latency",
        ),
        (["prune", "x", "--fit", "6GB", "7GB"], "--fit: tokens and bits are decided for one size"),
        (
            ["export", "x", "--budget", "latency", "--fit", "700M"],
            "--fit: 700M is in parameters, and latency counts seconds; give a number in (0, 1]",
        ),
        (["compare", "x", "--methods", "latency", "--fit", "80ms"], "--fit: "),
        (
            ["prune", "x", "--weight-rate", "0.0001", "--shard", "full"],
            "--shard: divides weights, and they learn where they lie as a whole; leave it out, or",
        ),
    ],
)
def test_what_is_wrong_with_arguments_is_one_line(arguments, said, capsys):
    with pytest.raises(InputError) as refused:
        parse(arguments)
    print_error(refused.value, arguments[0], as_json=True)
    printed = capsys.readouterr()
    assert said in printed.err
    assert len(printed.err.splitlines()) == 1
    found = json.loads(printed.out)
    assert found.keys() == {"error", "field", "hint"}
    assert not found["field"].startswith("-")


@pytest.mark.parametrize(
    ("given", "again"),
    [
        ([], ["--resume"]),
        (["--resume"], []),
        (["--resume", "auto"], []),
        (["--resume=auto"], []),
        (["--resume", "false"], ["--resume"]),
    ],
)
def test_what_was_stopped_says_how_to_go_on(given, again, tmp_path):
    """With a command that the parser takes."""
    (tmp_path / "config.toml").write_text(tomli_w.dumps(resolved(PruneConfig("m"))))
    arguments = ["prune", "m", "--output-dir", str(tmp_path), *given]
    said = _how_to_resume(arguments).removeprefix("; go on with: disp-llm ")
    assert shlex.split(said) == [*arguments, *again]
    assert parse(shlex.split(said)).resume


def test_settings_become_flags_and_everything_else_stays():
    flags = flags_of("prune")
    assert (flags["eval_text"], flags["model"]) == ("--eval-text", "MODEL")
    assert flags_of("recover")["model"] == "MODEL"
    assert "run" not in flags  # there it is the name of a folder
    said = with_flags("leave `eval_text` out or name `model`", flags)
    assert said == "leave --eval-text out or name MODEL"
    shell = "run `disp-llm prune --resume`, or `pip install peft`, or `paper`"
    assert with_flags(shell, flags) == shell
    assert flags_of("nothing") == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_training_asks_it_to_stop(number):
    before = signal.getsignal(number)
    with closing(StopSignals()) as stop:
        progress = stop.watching(lambda *told: None)
        progress("scoring", 1, 1, {})
        assert signal.getsignal(number) is before  # nothing is trained yet
        assert not stop()
        progress("learning masks", 1, 9, {})
        signal.raise_signal(number)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_signals_act_at_once_when_training_is_over():
    before = signal.getsignal(signal.SIGTERM)
    with closing(StopSignals()) as stop:
        progress = stop.watching(lambda *told: None)
        assert not stop()
        progress("learning masks", 9, 9, {})
        progress("export", 0, 1, {})
        assert signal.getsignal(signal.SIGTERM) is before
        assert not stop()  # the training of the next method
        progress("learning masks", 9, 9, {})
        signal.raise_signal(signal.SIGTERM)  # after the last question
        with pytest.raises(KeyboardInterrupt):
            progress("export", 0, 1, {})
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("plain_lines", [True, False])
def test_progress_outside_a_terminal_is_a_line_each_tenth_or_nothing(capsys, plain_lines):
    with progress_bar(plain_lines) as progress:
        for done in range(1, 41):
            progress("learning masks", done, 40, {"loss": 2.5, "keep": 0.5, "tokens_per_s": 800.4})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (11 if plain_lines else 0)  # the first step, then each tenth
    if plain_lines:
        assert lines[-1] == "learning masks 40/40 loss 2.500  keep 0.5000  800 tokens/s"


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_applies(name):
    config = parse(["prune", "x", "--recipe", name])
    assert config == apply_recipe(PruneConfig(model="x", recipe=name), load_recipe(name))
    assert parse(["prune", "x", "--recipe", name, "--steps", "7"]).learn.steps == 7


def test_a_file_of_settings_with_a_typo_names_the_right_key(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[training]\nlerning_rate = 0.1\n")
    with pytest.raises(InputError, match="nearest: learning_rate"):
        parse(["prune", "x", "--config", str(path)])
    path.write_text('[training]\nlearning_rate = "fast"\n')
    with pytest.raises(InputError, match="learning_rate: expected float, got str"):
        parse(["prune", "x", "--config", str(path)])
    for line, said in (
        ('[learn]\nstart = "score"', "one of scores, random"),
        ('[learn]\nestimator = "projectd"', "projected"),
        ('keep = ["a"]', "keep: expected float, got str"),
        ("[text]\ntext = [3]", "text: expected a path, got int"),
    ):
        path.write_text(line)
        with pytest.raises(InputError, match=said):
            parse(["prune", "x", "--config", str(path)])


def test_a_file_stands_on_its_base(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "paper"\nkeep = [0.7]\n[learn]\nsteps = 9\n')
    paper, mine = (
        parse(["prune", "x", *flags]) for flags in (["--recipe", "paper"], ["--config", str(path)])
    )
    assert mine.keep == (0.7,)
    assert mine.learn == replace(paper.learn, steps=9)
    path.write_text('for_ = "anywhere"\n')
    flags = ([], ["--for", "vllm"])
    given = [parse(["prune", "x", "--config", str(path), *flag]) for flag in flags]
    assert [config.for_ for config in given] == ["anywhere", "vllm"]
    path.write_text('base = "papper"\n')
    with pytest.raises(InputError, match="nearest: paper"):
        parse(["prune", "x", "--config", str(path)])


def test_what_is_nearer_the_end_of_the_line_wins(tmp_path):
    """Defaults < recipe < file < flags; a run's file says nothing of where it lies."""
    path = tmp_path / "config.toml"
    asked = parse(["prune", "x", "--keep", "0.7", "--seed", "4", "--output-dir", "old"])
    path.write_text(tomli_w.dumps(resolved(asked)))
    line = ["prune", "y", "--recipe", "domain", "--config", str(path)]
    config = parse([*line, "--steps", "9", "--sites", "mlp_mid"])
    assert (config.model, config.output_dir, config.keep) == ("y", Path("run"), (0.7,))
    assert (config.learn.steps, config.sites, config.machine.seed) == (9, ("mlp_mid",), 4)


def test_a_recipe_that_a_file_names_lies_below_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('recipe = "paper"\n[learn]\nsteps = 77\n')
    asked = ["prune", "x", "--config", str(path)]
    paper = parse(["prune", "x", "--recipe", "paper"])
    assert parse(asked) == replace(paper, learn=replace(paper.learn, steps=77))
    domain = parse([*asked, "--recipe", "domain"])
    assert (domain.recipe, domain.learn.estimator, domain.learn.steps) == (
        "domain",
        "projected",
        77,
    )


def test_a_recorded_line_has_names_for_paths(monkeypatch):
    words = ["disp-llm", "prune", "m", "--eval-text", "/home/me/y.txt", "--text=/a/b.txt"]
    monkeypatch.setattr(sys, "argv", words)
    assert command_line() == "disp-llm prune m --eval-text y.txt --text=b.txt"


def test_a_number_for_a_list_is_asked_for_as_a_list(tmp_path):
    path = tmp_path / "mine.toml"
    for said, told in (
        ("keep = 0.7", "expected array, got float; give a list, each a number"),
        ('text = "some.txt"', "expected object, got str; correct it"),
    ):
        path.write_text(f"{said}\n")
        with pytest.raises(InputError, match=told):
            parse(["prune", "x", "--config", str(path)])


@pytest.mark.parametrize(
    ("error", "command", "said"),
    [
        (ConnectionError("no route"), "prune", "prune: no route; check the network"),
        (MemoryError(), "chat", "chat: out of memory; free memory"),
        (torch.OutOfMemoryError("full"), "recover", "shorter windows, a smaller batch"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "prune", "shorter windows"),
        (OSError(28, "No space left on device", "a"), "prune", "a: No space left on device; make"),
        (RuntimeError("ours"), "prune", "None"),
    ],
)
def test_errors_of_the_machine_say_what_helps(error, command, said):
    assert said in str(explained(error, command))


def listed_in(page: str) -> list[str]:
    """The flags that a help lists."""
    return [line.split()[0].strip(",") for line in page.splitlines() if line.startswith("  --")]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_short_help_lists_few_settings(command):
    done = run_command(command, "--help")
    shown = listed_in(done.stdout)
    assert len(shown) <= USUAL
    kind = all_settings()[command]
    every = run_command(command, "--help-all").stdout if usual_settings_of(kind) else done.stdout
    flags = {one.flag for one in settings_of(kind).values() if not one.is_positional}
    listed = set(listed_in(every))
    assert listed == flags | {f"--{name}" for name in extras_of(kind)}
    assert set(shown) <= listed


def test_all_commands_have_few_settings_and_each_says_what_it_does():
    kinds = all_settings().values()
    assert len({name for kind in kinds for name in settings_of(kind)}) <= ALL
    assert not [
        one.path for kind in kinds for one in settings_of(kind).values() if not one.sentence
    ]


def test_a_command_imports_the_settings_of_no_other():
    script = (
        "import sys\nfrom disp_llm.cli.parsing import parse\nparse(['prune', 'm'])\n"
        "print([name for name in sys.modules if name.startswith('disp_lab') or "
        "name in ('disp_llm.config.commands', 'disp_llm.config.recover')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "[]\n"


def test_quiet_and_verbose():
    line = ["report", "nowhere", "--json"]
    assert "Traceback" not in run_command(*line).stderr
    assert "Traceback" in run_command(*line, "--verbose").stderr
    assert run_command(*line, "--quiet").stderr.count("\n") == 1


def test_config_survives_its_file(tmp_path):
    import tomli_w

    from disp_llm.runs.settings import stored_config

    config = parse(["prune", "x", "--keep", "0.8", "0.5", "--text", "a", "b", "--steps", "9"])
    (tmp_path / "config.toml").write_text(tomli_w.dumps(resolved(config)))
    assert stored_config(tmp_path) == config


def modules() -> list[str]:
    paths = sorted(SOURCE.rglob("*.py"))
    names = [".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def test_every_module_imports():
    for name in modules():
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


LIBRARIES = ("torch", "transformers")
SIBLINGS = ("configuration_disp_llm", "experts_disp_llm", "heads_disp_llm")


def test_exported_files_stand_alone():
    """What lies in an exported folder may import torch, transformers and its siblings only."""
    for path in (SOURCE / "compact").glob("*_disp_llm.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= set(LIBRARIES)
            elif isinstance(node, ast.ImportFrom):
                first = node.module.split(".")[0]
                assert first in (
                    "typing",
                    "types",
                    "functools",
                    "collections",
                    *LIBRARIES,
                    *SIBLINGS,
                )


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("prun", "disp-llm: prun: is no command (nearest: prune)"),
        ("convertt", "disp-llm: convertt: is no command (nearest: convert)"),
        ("xyzzy", "disp-llm: xyzzy: is no command; see disp-llm --help"),
    ],
)
def test_a_mistyped_command_gets_the_nearest_one(word, said):
    done = must_refuse(word, "model")
    assert said in done.stderr


def test_the_version_is_that_of_the_package():
    done = run_command("--version")
    assert (done.returncode, done.stdout) == (0, f"disp-llm {disp_llm.__version__}\n")


def test_an_error_that_a_signal_became_is_an_interruption(monkeypatch):
    def swallowed(config):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as error:
            raise ValueError("of a library") from error

    monkeypatch.setattr("disp_llm.cli.commands.verify", swallowed)
    done = run_command("verify", "nowhere")
    assert (done.returncode, done.stderr) == (130, "disp-llm: interrupted\n")


def test_a_revision_belongs_to_the_name():
    asked = parse(["prune", "org/name", "--revision", "v2"])
    assert asked.model == parse(["prune", "org/name@v2"]).model == "org/name@v2"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_commands_and_flags(shell):
    done = must_run("--completion", shell)
    for word in ("recover", "--output-dir", "--weight-optimizer"):
        assert word in done.stdout
    if shell == "bash":
        checked = subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=False)
        assert checked.returncode == 0
    must_refuse("--completion", "cmd")
