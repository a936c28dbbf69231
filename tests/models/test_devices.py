"""What a machine offers, also where the system does not tell."""

import platform
import re
from pathlib import Path

import psutil
import pytest
import torch
from conftest import must_run

from disp_llm.models.devices import free_memory, release_freed_memory, resolve_dtype
from disp_llm.runs import provenance

CPU = torch.device("cpu")
FLAGS = "processor : 0\nmodel name : {}\nflags : {}\n\nprocessor : 1\nmodel name : b\nflags : x\n"


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("fpu avx512_bf16 avx512_vnni", torch.bfloat16),
        ("fpu avx512_bf16x", torch.float32),
        ("", torch.float32),
    ],
)
def test_bfloat16_is_used_where_the_processor_computes_in_it(monkeypatch, tmp_path, flags, dtype):
    told = tmp_path / "cpuinfo"
    told.write_text(FLAGS.format("One 2: 3 GHz", flags))
    monkeypatch.setattr(provenance, "CPU_INFO", told)
    assert resolve_dtype("auto", CPU) == dtype
    assert provenance.hardware()["cpu"] == "One 2: 3 GHz"


@pytest.fixture
def no_proc(monkeypatch):
    """A system without `/proc`, as macOS is, or a Linux that hides it."""
    monkeypatch.setattr(provenance, "CPU_INFO", Path("/nowhere/cpuinfo"))
    monkeypatch.setattr(psutil, "PROCFS_PATH", "/nowhere")
    with pytest.raises(FileNotFoundError):
        psutil.virtual_memory()


def test_doctor_needs_no_proc(no_proc, llama_folder):
    assert resolve_dtype("auto", CPU) == torch.float32
    assert provenance.hardware()["cpu"]
    assert free_memory(CPU) > 0
    done = must_run("doctor", llama_folder, "--device", "cpu")
    assert re.search(r"\d GiB are free: ", done.stdout), done.stdout


def test_what_cannot_be_read_of_the_processor_is_not_there(monkeypatch, tmp_path):
    for unreadable in (tmp_path, tmp_path / "binary"):
        (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
        monkeypatch.setattr(provenance, "CPU_INFO", unreadable)
        assert provenance.cpu_facts() == {}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory")
def test_freed_memory_goes_back_to_the_system():
    """Though something behind it is still in use."""
    process = psutil.Process()
    blocks = [torch.ones(25_000) for _ in range(2_000)]  # each too small to be mapped by itself
    last = torch.ones(25_000)
    held = process.memory_info().rss  # part of which other tests may have freed and left here
    del blocks
    release_freed_memory()
    assert held - process.memory_info().rss > 150e6
    assert last.sum() == 25_000
