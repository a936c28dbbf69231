"""Perplexity against the definition, computed the long way with transformers alone."""

import math
import statistics

import pytest
import torch
from conftest import byte_tokenizer, tiny_prunable

from disp_llm.config.errors import InputError
from disp_llm.config.parts import PerplexityConfig
from disp_llm.data.tokens import tokenize
from disp_llm.evaluation.perplexity import perplexity, perplexity_of


@pytest.fixture
def stream(text_file):
    return tokenize([text_file.read_text()], byte_tokenizer())


def test_without_overlap(stream):
    target = tiny_prunable("llama")
    model = target.model
    measured = perplexity(target, stream, PerplexityConfig(32, 5))
    losses = [
        float(model(stream[i : i + 32][None], labels=stream[i : i + 32][None]).loss)
        for i in range(0, 160, 32)
    ]
    mean = sum(losses) / 5
    assert measured.perplexity == pytest.approx(math.exp(mean), rel=1e-5)
    assert measured.tokens == 5 * 31
    spread = torch.tensor(losses, dtype=torch.float64).std() / math.sqrt(5)
    assert measured.perplexity_stderr == pytest.approx(math.exp(mean) * float(spread), rel=1e-3)


def test_a_window_weighs_on_the_error_as_its_tokens_do():
    alike = [100 * (2 + 0.01 * i) for i in range(20)]
    plain = perplexity_of(alike, [100] * 20, 100)
    spread = statistics.stdev(loss / 100 for loss in alike) / math.sqrt(20)
    assert plain.perplexity_stderr == pytest.approx(plain.perplexity * spread)
    odd = perplexity_of([*alike, 9.0], [*[100] * 20, 1], 100)
    assert odd.perplexity_stderr == pytest.approx(plain.perplexity_stderr, rel=0.2)


def test_one_window_has_no_standard_error(stream):
    measured = perplexity(tiny_prunable("llama"), stream, PerplexityConfig(32, 1))
    assert measured.perplexity_stderr is None


@pytest.mark.parametrize("weight", [math.nan, math.inf, 1e6])
def test_a_loss_without_a_perplexity_is_refused(stream, weight):
    """A file of figures would hold NaN or Infinity, which no JSON has."""
    target = tiny_prunable("llama")
    with torch.no_grad():
        target.model.get_output_embeddings().weight.mul_(weight)
    with pytest.raises(InputError, match="its loss on the text is"):
        perplexity(target, stream, PerplexityConfig(32, 2))
