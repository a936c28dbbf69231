"""What a model writes is run by itself, within limits, and right only if its tests pass."""

import importlib
import json
import socket
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def pass_at_one():
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        module = importlib.import_module("pass_at_one")
    tried = [*module.ALONE, "true"]
    if subprocess.run(tried, capture_output=True, check=False).returncode:
        pytest.skip("no processes apart from others here")
    return module


@pytest.mark.parametrize(
    ("program", "right"),
    [
        ("assert 1 + 1 == 2", True),
        ("assert 1 + 1 == 3", False),
        ("def broken(:", False),
        ("import sys; sys.exit(1)", False),
        ("while True: pass", False),
        ("print(len(bytes(2**31)))", False),
        ("open('large', 'wb').write(bytes(2**21))", False),
        ("import socket; socket.create_connection(('127.0.0.1', {port}), 1)", False),
        ("import os; assert os.getpid() < 10 and not os.environ.get('HOME')", True),
        ("import os, time\nif os.fork() == 0:\n os.setsid(); time.sleep(1000)", True),
    ],
)
def test_a_program_passes_by_itself(program, right, pass_at_one, monkeypatch):
    monkeypatch.setattr(pass_at_one, "SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert pass_at_one.passes(program.replace("{port}", str(port))) is right


def test_references_pass_in_a_block_and_continued(pass_at_one, tmp_path):
    adds = {
        "prompt": 'import math\n\n\ndef add(a, b):\n    """The sum."""\n',
        "canonical_solution": "    return math.fsum([a, b])\n",
        "entry_point": "add",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    }
    (tmp_path / "evals.jsonl").write_text(json.dumps(adds) + "\n")
    tasks = [
        {"task_id": task, "prompt": "Write add.", "code": "def add(a, b):\n    return a + b",
         "test_imports": ["import math"], "test_list": ["assert add(1, math.floor(2.5)) == 3"]}
        for task in (10, 11, 511)
    ]  # fmt: skip
    (tmp_path / "mbpp.json").write_text(json.dumps(tasks))
    (first,) = pass_at_one.humaneval(tmp_path / "evals.jsonl")
    (second,) = pass_at_one.mbpp(tmp_path / "mbpp.json")  # of the test split alone
    whole = f"def add(a, b):{first.reference.split(':')[-1]}"
    for problem, answers in (
        (first, {whole: True, "def add(a, b): return a": False}),
        (second, {second.reference: True, "def add(a, b): return a": False}),
    ):
        for answer, right in answers.items():
            said = f"Sure:\n```python\n{answer}\n```\nIt adds."
            assert pass_at_one.passes(problem.program(said, chat=True)) is right
            cut = f"```python\n{answer}"  # nobody closed the block
            assert pass_at_one.passes(problem.program(cut, chat=True)) is right
    assert pass_at_one.passes(first.program(first.reference, chat=False))
    assert not pass_at_one.passes(first.program("    return a", chat=False))
