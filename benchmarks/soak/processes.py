"""Commands as processes of their own that cost little: forks of one that has all imports."""

import importlib
import os
import pkgutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

LONGEST = 90.0
"""Seconds after which a command of a tiny model hangs."""

MODULES = "modules"
"""Name of the file in which a fork leaves the names of what it has imported."""

ADOPTED = ("PIL", "disp_llm", "matplotlib", "transformers", "numpy", "compressed_tensors")
"""Packages that are slow to import and may be imported by any command."""

PAUSE = 0.005
"""Seconds between two looks at a process."""


@dataclass(frozen=True)
class Done:
    """How a command has ended."""

    line: list[str]
    code: int
    """Negative: the signal that ended it."""
    out: str
    err: str
    seconds: float
    sent: int = 0
    """The signal that it was sent; 0 = none."""
    hung: bool = False


def import_all() -> None:
    """Imports what commands import, so that every fork has it."""
    import accelerate
    import torch
    import transformers

    torch.set_num_threads(1)  # threads do not survive a fork
    assert accelerate
    from transformers import (  # noqa: F401  (lazy: imported when they are named)
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationMixin,
        PreTrainedModel,
        PreTrainedTokenizerFast,
    )

    assert transformers
    import disp_llm.cli.commands
    import disp_llm.commands

    for module in pkgutil.iter_modules(disp_llm.commands.__path__, "disp_llm.commands."):
        importlib.import_module(module.name)


def run(
    line: list[str], cwd: Path, number: int = 0, after: float = 0.0, adopts: bool = False
) -> Done:
    """Runs `disp-llm LINE` in a folder.

    Args:
        number: a signal that it is sent, if it still runs, `after` so many seconds.
        adopts: whether later forks shall have what this one has imported.
    """
    with tempfile.TemporaryDirectory() as aside:
        out, err = Path(aside) / "out", Path(aside) / "err"
        began = time.monotonic()
        pid = _forked(line, cwd, out, err)
        sent, hung = 0, False
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            passed = time.monotonic() - began
            if number and not sent and passed >= after:
                os.kill(pid, number)
                sent = number
            if passed > LONGEST:
                os.kill(pid, signal.SIGKILL)
                hung = True
            time.sleep(PAUSE)
        code = os.waitstatus_to_exitcode(ended[1])
        seconds = time.monotonic() - began
        if adopts:
            _adopt(Path(aside) / MODULES)
        said = [path.read_text(encoding="utf-8", errors="replace") for path in (out, err)]
        return Done(line, code, *said, seconds, sent, hung)


def _adopt(file: Path) -> None:
    for name in file.read_text().splitlines() if file.exists() else ():
        if name not in sys.modules and name.split(".")[0] in ADOPTED:
            importlib.import_module(name)


def _forked(line: list[str], cwd: Path, out: Path, err: Path) -> int:
    """Starts a command; the number of its process."""
    sys.stdout.flush()
    out.touch()
    err.touch()
    caught = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, caught)  # until the child has its own handlers
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, caught)
        return pid
    code = 1
    try:
        code = _command(line, cwd, out, err)
    finally:  # also if a signal comes late: a child must never go on as its parent
        os._exit(code)


def _command(line: list[str], cwd: Path, out: Path, err: Path) -> int:
    """What a forked child does; its exit code."""
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY), number)
    os.chdir(cwd)
    sys.argv = ["disp-llm", *line]
    from disp_llm.cli.main import main

    code = 0
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out.with_name(MODULES).write_text("\n".join(sys.modules))
    sys.stdout.flush()
    sys.stderr.flush()
    return code
