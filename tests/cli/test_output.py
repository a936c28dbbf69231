"""Where a command writes: a full disk, a reader that has gone, a name that no file can have."""

import io
import json
import logging
import os
import platform
import subprocess
import sys
from contextlib import redirect_stdout

import pytest
from conftest import must_refuse, run_command

from disp_llm.cli.environment import ALLOCATOR_VARIABLES, Warnings, keep_freed_memory
from disp_llm.cli.main import main
from disp_llm.config.errors import InputError
from disp_llm.reporting import terminal
from disp_llm.runs.metrics import MetricsLog

full_disk = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
BAD, FINE = ["prune", "m", "--keep", "4", "--json"], ["report", "run", "--json"]


@pytest.fixture
def run_into(monkeypatch, capsys):
    """`disp-llm ...` whose standard output is what is given; its exit code and what it said."""

    def run(arguments, output) -> tuple[object, list[str]]:
        monkeypatch.setattr("disp_llm.cli.commands.report", lambda config: {"text": "t" * 10_000})
        monkeypatch.setattr("disp_llm.cli.main.prepare_libraries", lambda **how: None)
        monkeypatch.setattr(terminal.results, "stderr", False)  # and so again after it
        monkeypatch.setattr(sys, "argv", ["disp-llm", *arguments])
        code: object = 0
        with redirect_stdout(output):
            try:
                main()
            except SystemExit as stop:
                code = stop.code
        if output is not None:
            output.close()  # as the interpreter does at its end: nothing fails any more
        return code, capsys.readouterr().err.splitlines()

    return run


@full_disk
@pytest.mark.parametrize("line_by_line", [False, True])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [(FINE, "disp-llm: report: No space left on device; make room"), (BAD, "--keep: out of range")],
)
def test_a_full_disk_is_one_line(run_into, arguments, said, line_by_line):
    full = open("/dev/full", "w", buffering=1 if line_by_line else -1)  # noqa: SIM115
    code, lines = run_into(arguments, full)
    assert code == 2
    assert len(lines) == 1
    assert said in lines[0]


@full_disk
@pytest.mark.parametrize("settles", [False, True])
def test_a_log_that_cannot_be_written_says_so(settles, tmp_path):
    """At once, not once more without its name when it is closed."""

    def write() -> None:
        with MetricsLog(tmp_path / "metrics.jsonl", 0, None) as log:
            log._file.close()
            log._file = open("/dev/full", "a", buffering=-1 if settles else 1)  # noqa: SIM115
            log.append({"step": 1})
            log._file.flush()

    with pytest.raises(InputError, match=r"metrics\.jsonl: cannot read or write .No space.*resume"):
        write()


@pytest.mark.parametrize(("arguments", "expected"), [(FINE, 1), (BAD, 2)])
def test_a_reader_that_has_gone_is_no_error(run_into, arguments, expected):
    read, write = os.pipe()
    os.close(read)
    code, lines = run_into(arguments, os.fdopen(write, "w"))
    assert code == expected
    assert len(lines) == (1 if arguments is BAD else 0)


def test_a_standard_output_that_is_closed_takes_nothing(run_into):
    assert run_into(FINE, None) == (0, [])


@full_disk
def test_help_on_a_full_disk_is_one_line():
    """In a process of its own, whose end writes what is left."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "disp_llm", "--help"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "No space left on device" in done.stderr


def test_results_go_to_standard_output_and_messages_to_standard_error(llama_folder, text_file):
    """Or, where that is for the object alone, both to standard error."""
    asked = "eval", llama_folder, "--text", text_file, "--context", 32, "--windows", 1
    asked += "--dtype", "float32"
    plain, as_json = run_command(*asked), run_command(*asked, "--json")
    assert " parameters, " in plain.stdout
    assert plain.stderr == "perplexity 1/1\n"
    assert set(json.loads(as_json.stdout)) >= {"perplexity", "parameters"}
    assert as_json.stderr == plain.stderr + plain.stdout


def test_a_file_out_of_reach_is_one_line(monkeypatch):
    def denied(config):
        raise PermissionError(13, "Permission denied", "secret.json")

    monkeypatch.setattr("disp_llm.cli.commands.report", denied)
    done = must_refuse("report", "run", "--json")
    assert done.stderr.startswith("disp-llm: secret.json: Permission denied; ")
    assert '"field": "secret.json"' in done.stdout


def test_what_holds_for_every_row_is_said_once():
    said = io.StringIO()
    handler = Warnings(said)
    logger = logging.Logger("rows")
    logger.addHandler(handler)
    for row in ("0.8", "0.5"):
        logger.warning("%s is not above chance", "arc_easy")
        logger.warning("keep %s is slow", row)
    assert said.getvalue().splitlines() == [
        "disp-llm: arc_easy is not above chance",
        "disp-llm: keep 0.8 is slow",
        "disp-llm: keep 0.5 is slow",
    ]


PAGES_TAKEN = """
import resource

def taken() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"1") * (1 << 27)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

from disp_llm.cli.environment import keep_freed_memory

keep_freed_memory()
taken()
print(taken())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc here")
def test_freed_memory_is_taken_again():
    """128 MiB are 32,768 pages of 4 KiB."""
    chosen = {k: value for k, value in os.environ.items() if k not in ALLOCATOR_VARIABLES}
    arguments = [sys.executable, "-c", PAGES_TAKEN]
    done = subprocess.run(arguments, env=chosen, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100


@pytest.mark.parametrize("variable", ["GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"])
def test_an_allocator_that_somebody_has_set_stays(variable, monkeypatch):
    monkeypatch.setenv(variable, "131072")
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("asked for the allocator"))
    keep_freed_memory()
