"""Answers that share a context against each of them run alone, the way lm-eval does it."""

import random

import pytest
import torch
from configurations import ARCHITECTURES, cases
from conftest import masks_of, tiny_prunable, unusual_prunable
from wrapping import prunable_wrapper

from disp_llm.config.errors import InputError
from disp_llm.evaluation import continuations
from disp_llm.evaluation.continuations import log_likelihoods
from disp_llm.exporter.cutting import compact_model
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.architectures import WRAPPERS

LONGEST = 60


def drawn(length: int, draw: random.Random) -> list[int]:
    return [draw.randrange(4, 320) for _ in range(length)]


@pytest.fixture
def requests():
    """Questions of several answers, some of one token, some with contexts of the same length or of
    one token; one context that is alone, and one whose answers do not all fit."""
    draw = random.Random(0)
    found = []
    for length in (20, 20, 7, 31, 1, 20, 55):
        context = drawn(length, draw)
        found += [(context, drawn(draw.randrange(1, 9), draw)) for _ in range(4)]
    found.append((drawn(9, draw), drawn(3, draw)))
    draw.shuffle(found)
    return found


def alone(model, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    whole = (context + continuation)[-LONGEST - 1 :]
    logits = model(torch.tensor([whole[:-1]])).logits[0, -len(continuation) :].float()
    wanted = torch.tensor(continuation)
    value = logits.log_softmax(-1).gather(1, wanted[:, None]).sum()
    return float(value), bool((logits.argmax(-1) == wanted).all())


def test_an_answer_longer_than_what_the_model_reads_is_refused():
    requests = [([5], list(range(LONGEST + 1)))]
    with pytest.raises(InputError, match=f"answer of {LONGEST + 1} tokens, and the model reads"):
        log_likelihoods(tiny_prunable("llama"), requests, LONGEST)


def require_same(target, requests) -> None:
    found = log_likelihoods(target, requests, LONGEST)
    for request, (value, greedy) in zip(requests, found, strict=True):
        wanted = alone(target.model, *request)
        assert value == pytest.approx(wanted[0], rel=1e-5, abs=1e-4)
        assert greedy == wanted[1]


@pytest.mark.parametrize("model_type", cases(ARCHITECTURES))
def test_every_family(model_type, requests):
    require_same(tiny_prunable(model_type), requests)


@pytest.mark.parametrize("model_type", cases(sorted(WRAPPERS)))
def test_every_wrapper(model_type, requests):
    """Which place tokens by themselves, unless they are told where they are."""
    require_same(prunable_wrapper(model_type), requests)


@pytest.mark.parametrize("model_type", ["gemma4_text", "gemma4_unified_text"])
def test_keys_and_values_of_other_blocks(model_type, requests):
    require_same(unusual_prunable(model_type), requests)


@pytest.mark.parametrize("model_type", ["mistral", "gemma2", "gemma3_text", "gemma4_text"])
def test_a_window_of_attention_shorter_than_the_context(model_type, requests):
    require_same(tiny_prunable(model_type, sliding_window=12), requests)


def test_a_compact_model(requests):
    target = tiny_prunable("llama", heads=True)
    compact = compact_model(target, masks_of("random", target.layout))
    require_same(PrunableModel(compact, target.family), requests)


@pytest.mark.parametrize(("name", "most"), [("TOKENS", 1), ("TOKENS", 100), ("POSITIONS", 3)])
def test_small_batches(requests, name, most, monkeypatch):
    monkeypatch.setattr(continuations, name, most)
    require_same(tiny_prunable("llama"), requests)


def test_copies_of_a_context_are_bounded():
    """77 intents behind one long question would each have a copy of its keys and values."""
    rows = continuations._rows([([5] * 1500, [n]) for n in range(77)], 2000, shares=True)
    batches = list(continuations._batches(rows))
    assert [len(batch) for batch in batches] == [*[10] * 7, 7]
    assert all(len(batch) * 1499 <= continuations.CACHED for batch in batches)


def test_the_likeliest_continuation_is_known(requests):
    target = tiny_prunable("llama")
    context = requests[0][0]
    logits = target.model(torch.tensor([context])).logits[0, -1]
    likeliest, other = logits.topk(2).indices.tolist()
    found = log_likelihoods(target, [(context, [likeliest]), (context, [other])], LONGEST)
    assert [greedy for _, greedy in found] == [True, False]


def test_a_context_is_run_once(requests):
    target = tiny_prunable("llama")
    read = []
    target.model.model.embed_tokens.register_forward_pre_hook(
        lambda module, args: read.append(args[0])
    )
    context = [5] * 20
    told = []
    log_likelihoods(
        target, [(context, [n]) for n in range(4, 8)], LONGEST, lambda *done: told.append(done)
    )
    assert [tuple(tokens.shape) for tokens in read] == [(1, 19), (4, 1)]
    assert told == [(4, 4)]
