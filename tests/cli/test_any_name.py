"""Whatever a name holds, what is said is one line of text, and `--json` is JSON."""

import io
import json
import logging
import os
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest
from conftest import must_refuse
from fresh import start_command
from rich.table import Table
from safetensors.torch import load_file, save_file

from disp_llm.cli.environment import Warnings
from disp_llm.cli.main import main
from disp_llm.config.checks import check_settings
from disp_llm.config.errors import InputError, printable
from disp_llm.config.prune import PruneConfig
from disp_llm.reporting import terminal

EVIL = {
    "a line end": "a\nb",
    "a carriage return": "a\rb",
    "a clear screen": "a\x1b[2Jb",
    "a bell": "a\x07b",
    "a C1 control": "a\x9b2Jb",
    "a line separator": "a\u2028b",
    "a direction": "a\u202eb",
    "half a character": "a\udcffb",
    "a delete": "a\x7fb",
}
FINE = "tëxt 你 [red] :smile: \\"
NAMES = pytest.mark.parametrize("name", EVIL.values(), ids=EVIL)


def is_one_line(said: str) -> bool:
    return said.endswith("\n") and said[:-1].isprintable()


@NAMES
def test_what_cannot_be_shown_is_escaped(name):
    assert printable(name).isprintable()
    assert printable(name) == f"a{name[1:-1].encode('unicode_escape').decode()}b"
    assert printable(FINE) == FINE
    assert str(InputError(name, field=name, hint=name)).isprintable()


@NAMES
@pytest.mark.parametrize(
    "flags",
    [
        ["--method", "NAME"], ["--recipe", "NAME"], ["--recipe", "NAME.toml"], ["--sites", "NAME"],
        ["--start", "NAME"], ["--text", "NAME"], ["--keep", "NAME"],
        ["--device", "NAME"], ["--suite", "NAME.toml"], ["--NAME", "3"], ["NAME"],
        ["--budget", "total", "--fit", "NAME"],
    ],
)  # fmt: skip
def test_a_flag_of_any_value_is_one_line(name, flags, llama_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [flag.replace("NAME", name) for flag in flags]
    done = must_refuse("prune", llama_folder, "--json", *arguments)
    *progress, said = done.stderr.splitlines(keepends=True)
    assert is_one_line(said), done.stderr
    assert all(map(is_one_line, progress))
    assert set(json.loads(done.stdout)) == {"error", "field", "hint"}


@pytest.mark.parametrize(
    "name", [name for name in EVIL.values() if "\udcff" not in name], ids=ascii
)
def test_a_stranger_names_a_tensor(name, llama_folder, text_file, tmp_path):
    folder = shutil.copytree(llama_folder, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors[f"evil{name}disp-llm: ok"] = tensors["model.norm.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    done = must_refuse("eval", folder, "--text", text_file, "--context", 32, "--windows", 1)
    assert is_one_line(done.stderr.splitlines(keepends=True)[-1])
    assert not any(letter in done.stderr for letter in "\x1b\x07\x9b\u202e\u2028\r")


@NAMES
def test_warnings_and_tables_hold_any_name(name, capsys):
    record = logging.makeLogRecord({"msg": "%s is odd", "args": (name,)})
    assert Warnings(io.StringIO()).format(record).isprintable()
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    terminal.results.print(table)
    terminal.say(f"folder {name}")
    with terminal.progress_bar(plain_lines=True) as progress:
        progress(name, 1, 1, {})
    said = "".join(capsys.readouterr())
    assert all(map(str.isprintable, said.split("\n")))
    assert said.count(printable(name)) == 5


def test_a_name_that_is_fine_is_shown_as_it_is(capsys):
    terminal.say(FINE)
    assert capsys.readouterr().out == f"{FINE}\n"


BAD = "bad\udcff.txt"  # b"bad\xff.txt", as Python has it


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", BAD], ["eval", "m", "--text", BAD], ["prune", "m", "--text", "a", BAD],
        ["prune", "m", "--output-dir", BAD], ["prune", "m", "--dataset", BAD], ["report", BAD],
        ["export", BAD, "--keep", "0.5"], ["verify", BAD], ["doctor", BAD],
        ["bench", "m", "--against", BAD], ["push", BAD, "a/b"],
        ["compare", "m", "--output-dir", BAD], ["recover", "f", "--teacher", BAD],
        ["convert", "f", "--to", "int8", "--output-dir", BAD],
    ],
)  # fmt: skip
def test_a_name_that_is_not_utf_8_is_one_line(arguments):
    done = must_refuse(*arguments, "--json")
    assert is_one_line(done.stderr)
    assert r"bad\udcff.txt" in done.stderr
    assert "is not UTF-8; rename it" in done.stderr
    assert json.loads(done.stdout)["field"]


def test_python_refuses_such_a_name_too():
    with pytest.raises(InputError, match=r"bad\\udcff.txt\" is not UTF-8"):
        check_settings(PruneConfig(BAD))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_json_is_utf_8_whatever_the_locale(encoding, monkeypatch):
    """Names that are not UTF-8 come out by JSON's own rule."""
    result = {"text": FINE, "left_out": [BAD, *EVIL.values()]}
    monkeypatch.setattr(terminal.results, "stderr", False)  # and so again after the test
    monkeypatch.setattr("disp_llm.cli.commands.report", lambda config: result)
    monkeypatch.setattr("disp_llm.cli.main.prepare_libraries", lambda **how: None)
    monkeypatch.setattr(sys, "argv", ["disp-llm", "report", "run", "--json"])
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        main()
        terminal.say(FINE)
    err.flush()
    assert json.loads(out.buffer.getvalue().decode("utf-8")) == result
    assert err.buffer.getvalue().decode("utf-8") == f"{FINE}\n"
    monkeypatch.setattr(sys, "argv", ["disp-llm", "prune", "m", "--method", FINE])
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit):
        main()
    err.flush()
    assert f"no method '{FINE}'" in err.buffer.getvalue().decode("utf-8")


def test_a_measurement_is_not_lost_for_its_name(llama_folder, text_file, tmp_path):
    text = shutil.copy(text_file, tmp_path / "tëxt 你.txt")
    done = start_command(
        "eval", llama_folder, "--text", text, "--context", 32, "--windows", 1, "--json",
        PYTHONIOENCODING="ascii", LC_ALL="C", OMP_NUM_THREADS="1",
    ).wait()  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["perplexity"] > 1


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE"])
def test_nothing_but_text_enters_a_pipe(variable, monkeypatch, capsys):
    monkeypatch.setenv(variable, "1")
    for name in ("messages", "results"):
        console = terminal.LineConsole(stderr=name == "messages", highlight=False, markup=False)
        monkeypatch.setattr(terminal, name, console)
    with terminal.progress_bar(plain_lines=True) as progress:
        progress("learning", 1, 2, {})
        terminal.say("a line")
    assert capsys.readouterr() == ("a line\n", "learning 1/2\n")


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 10**7}, {"num_hidden_layers": 10**7}, {"vocab_size": 10**12},
        {"num_attention_heads": 10**7, "hidden_size": 10**7}, {"intermediate_size": 10**9},
        {"hidden_size": 2**16, "num_hidden_layers": 1000},
    ],
)  # fmt: skip
def test_a_model_of_absurd_sizes_is_one_line(sizes, llama_folder, tmp_path):
    folder = shutil.copytree(llama_folder, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | sizes))
    for command in (["doctor"], ["eval"]):
        done = must_refuse(*command, folder)
        assert "; correct its config.json" in done.stderr
        assert is_one_line(done.stderr)


def test_closed_streams_are_no_trouble(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["disp-llm", "prune", "m", "--keep", "3"])
    with redirect_stdout(None), redirect_stderr(None), pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert os.environ.get("RANK") is None
