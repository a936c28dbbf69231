"""Several processes that work together, each with the environment that torchrun gives to its own:
fresh ones, where torchrun's interpreters take fifteen seconds to start."""

import signal
import socket
import subprocess
import time

import fresh
from small import settled

COMMAND = 'import runpy; runpy.run_module("disp_llm", run_name="__main__")'
"""The script of `python -m disp_llm`."""


def start(
    script: str, *arguments: object, count: int = 2, in_node: int = 0, before: tuple[str, ...] = ()
) -> list[fresh.Child]:
    """Starts processes.

    Args:
        in_node: how many of them are said to be on one node; 0 = all.
        before: lines of Python that each of them begins with, in order; the rest has none.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(in_node or count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    first = [*before, *[""] * count]
    return [
        fresh.Child(
            f"{first[rank]}\n{script}",
            ["disp-llm", *settled(arguments)],
            env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]


def run(
    script: str, *arguments: object, count: int = 2, in_node: int = 0
) -> list[subprocess.CompletedProcess[str]]:
    """What each of them printed; all have ended well."""
    done = ended(start(script, *arguments, count=count, in_node=in_node))
    assert [one.returncode for one in done] == [0] * count, [one.stderr for one in done]
    return done


def ended(children: list[fresh.Child]) -> list[subprocess.CompletedProcess[str]]:
    """What each of them printed once all have ended; when one has failed, the others are ended
    after a while, as torchrun does. When the test has no more time, all are, and say where they
    were."""
    try:
        alive = list(children)
        while alive:
            time.sleep(0.05)
            left = [one for one in alive if one.alive()]
            failed = any(one not in left and one.wait().returncode for one in alive)
            alive = left
            if failed:
                time.sleep(WHILE)
                _end(alive, signal.SIGKILL)
    except BaseException:
        _end(children, signal.SIGABRT)
        for one in children:
            print(one.wait().stderr)
        raise
    return [one.wait() for one in children]


def _end(children: list[fresh.Child], number: int) -> None:
    for one in children:
        if one.alive():
            one.send_signal(number)


WHILE = 1.0
"""Seconds that torchrun, too, may take to end the others."""
