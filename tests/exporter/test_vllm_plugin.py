"""What the plugin changes in vLLM, of which tests/proof/test_vllm.py runs the real one.

The kernel stands in for the one of processors with AMX, which few machines have.
"""

import sys
from types import ModuleType

import pytest
import torch

from disp_llm.compact import vllm_plugin

KERNELS = "vllm.model_executor.kernels.linear.scaled_mm.cpu"


class OfMatrices:
    """Takes matrices alone, as vLLM's does."""

    def _apply_weights_sgl(self, layer, inputs, bias=None):
        assert inputs.ndim == 2, "mat1 must be a 2D tensor"
        found = inputs @ layer
        return found if bias is None else found + bias


@pytest.fixture
def engine(monkeypatch) -> ModuleType:
    """The module of kernels of a vLLM that is not there, without a kernel; in a new process."""
    for depth in range(1, KERNELS.count(".") + 2):
        name = ".".join(KERNELS.split(".")[:depth])
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    vllm_plugin._int8_of_any_rank.cache_clear()
    return sys.modules[KERNELS]


@pytest.fixture
def kernel(engine) -> OfMatrices:
    class Kernel(OfMatrices):
        pass

    engine.CPUInt8ScaledMMLinearKernel = Kernel
    vllm_plugin._int8_of_any_rank()
    return Kernel()


@pytest.mark.parametrize("shape", [(5, 3), (1, 5, 3), (2, 4, 5, 3)])
def test_an_int8_layer_reads_what_has_any_number_of_dimensions(kernel, shape):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(shape, generator=generator)
    layer, bias = torch.randn(3, 7, generator=generator), torch.randn(7, generator=generator)
    torch.testing.assert_close(kernel._apply_weights_sgl(layer, inputs), inputs @ layer)
    torch.testing.assert_close(
        kernel._apply_weights_sgl(layer, inputs, bias), inputs @ layer + bias
    )


@pytest.mark.parametrize("missing", ["module", "kernel", "method"])
def test_other_versions_of_the_engine_stay_as_they_are(missing, engine, monkeypatch):
    if missing == "module":
        monkeypatch.delitem(sys.modules, KERNELS)
    if missing == "method":
        engine.CPUInt8ScaledMMLinearKernel = type("Kernel", (), {})
    before = dict(vars(engine))
    vllm_plugin._int8_of_any_rank()
    assert vars(engine) == before
    assert not hasattr(getattr(engine, "CPUInt8ScaledMMLinearKernel", None), "_apply_weights_sgl")
