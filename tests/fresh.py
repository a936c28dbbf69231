"""Fresh processes that cost little: children of one that has imported torch and transformers, and
nothing of ours.

A child is a process of its own, which can be killed, signalled or starved of disk space; what it
shares with the others is the five seconds that importing the libraries takes.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from small import settled

PARENT = """
import faulthandler, functools, importlib.metadata, json, os, sys, traceback
import accelerate, matplotlib.backends.backend_svg, msgspec, rich.progress, rich.table, torch
import transformers.models.llama.modeling_llama
from transformers import (
    AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel, PreTrainedTokenizerFast
)

torch.set_num_threads(1)
os.fsync = lambda descriptor: None
importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)
assert "disp_llm" not in sys.modules
for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "wait":
        _, status = os.waitpid(asked["pid"], 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
        continue
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        continue
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(asked[name], os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    faulthandler.enable(2)  # says where it is when it is aborted
    os.environ.update(asked["env"])
    sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.chdir(asked["cwd"])
    sys.argv = asked["argv"]
    code = 0
    try:
        exec(compile(asked["script"], "<fresh>", "exec"), {"__name__": "__main__"})
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
"""

HUB_AGAIN = """
import importlib, huggingface_hub
importlib.reload(huggingface_hub.constants)
huggingface_hub.hf_api.api.endpoint = huggingface_hub.constants.ENDPOINT
"""
"""Lines that read the hub's address and cache from the environment, as its library does when it is
imported."""

COMMAND = "from disp_llm.cli.main import main; main()"
"""The script of `disp-llm`."""


class Child:
    """One fresh process."""

    def __init__(self, script: str, argv: list[str], env: Mapping[str, str]):
        folder = Path(tempfile.mkdtemp())
        searched = {key: os.environ[key] for key in ("PYTHONPATH",) if key in os.environ}
        self.out, self.err = folder / "out", folder / "err"
        self.argv = argv
        self.pid = int(
            _ask(
                do="fork", script=script, argv=argv, env=searched | dict(env), cwd=os.getcwd(),
                out=str(self.out), err=str(self.err),
            )
        )  # fmt: skip
        self._code: int | None = None

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Its exit code (negative: the signal that ended it), and what it printed."""
        if self._code is None:
            self._code = int(_ask(do="wait", pid=self.pid))
        return subprocess.CompletedProcess(
            self.argv, self._code, self.out.read_text(), self.err.read_text()
        )

    def send_signal(self, number: int) -> None:
        """Sends it a signal."""
        os.kill(self.pid, number)

    def alive(self) -> bool:
        """Whether it still runs."""
        if self._code is not None:
            return False
        state = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        return state != "Z"


def run(script: str, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    """A script in a fresh process."""
    return Child(script, ["fresh", *map(str, arguments)], env).wait()


def start_command(*arguments: object, before: str = "", **env: str) -> Child:
    """`disp-llm ...` in a fresh process, after some lines of Python."""
    return Child(f"{before}\n{COMMAND}", ["disp-llm", *settled(arguments)], env)


def python(script: str, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    """A script in a new interpreter, where the order or the settings of imports matter."""
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | env,
        check=False,
    )


PROMPT = [5, 60, 7, 33, 100, 12]

SCRIPT = """
import json, sys
if {without}:
    sys.modules["disp_llm"] = None  # as if it were not installed
else:
    import disp_llm
import torch
from transformers import AutoModel, AutoModelForCausalLM
arguments = {{"trust_remote_code": True}} if {without} else {{}}
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], **arguments)
prompt = torch.tensor([json.loads(sys.argv[2])])
logits = model(prompt).logits
tokens = model.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0)
base = AutoModel.from_pretrained(sys.argv[1], **arguments)
print(json.dumps({{
    "class": type(model).__name__, "module": type(model).__module__, "base": type(base).__name__,
    "logits": logits[0].tolist(), "tokens": tokens[0].tolist(), "cached": model.config.use_cache,
    "hidden_differ": float((base(prompt)[0] - model.base_model(prompt)[0]).abs().max()),
}}))
"""


def load_and_generate(folder: Path, without: bool) -> dict[str, Any]:
    """What a model folder gives in a fresh process, `without` our package or with it."""
    done = run(SCRIPT.format(without=without), folder, json.dumps(PROMPT))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@cache
def _parent() -> subprocess.Popen[str]:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(parent.communicate, timeout=20)  # closes its input, at which it ends
    return parent


def _ask(**asked: Any) -> str:
    parent = _parent()
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write(json.dumps(asked) + "\n")
    parent.stdin.flush()
    return parent.stdout.readline()
