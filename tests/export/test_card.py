"""Sentences of the card that say what a size is and how it was checked."""

import pytest

from disp_llm.config.names import SITES
from disp_llm.export.card import _budget, _cache, _checked, _header, _scores, _task, _weights
from disp_llm.runs.results import SizeResult, served_by_vllm
from disp_llm.runs.scores import Scores, TaskScore


def size(**changes) -> SizeResult:
    """Half of a small model, with whole attention."""
    plain = {
        "size": "0.5", "budget": "params", "share_asked": 0.5, "keep": 0.5, "keep_total": 0.6,
        "parameters": 60, "block_parameters": 50, "bytes": 240, "share_of_budget": 0.5,
        "align": 1, "kv_cache": 1.0, "heads_pruned": False, "scaled": False, "biased": False,
        "adapter_rank": 0, "widths_full": dict.fromkeys(SITES, 32), "folder": "run/model",
    }  # fmt: skip
    return SizeResult(**plain | changes)


WHOLE = "The KV cache has the original's size."
HALF = "The KV cache has 50.0% of the original's size"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, WHOLE),
        ({"dropped": {"attention": 0, "mlp": 1}}, f"Blocks have lost 1 MLP.\n{WHOLE}"),
        (
            {"kv_cache": 0.5, "heads_pruned": True},
            f"{HALF}: KV heads are pruned.",
        ),
        (
            {"kv_cache": 0.5, "dropped": {"attention": 2, "mlp": 0}},
            f"Blocks have lost 2 attentions.\n{HALF}. vLLM serves no block without an attention.",
        ),
    ],
)
def test_what_is_left_of_the_cache(changes, said):
    assert _cache(size(**changes)) == said


@pytest.mark.parametrize(
    ("changes", "served"),
    [
        ({}, True),
        ({"dropped": {"attention": 0, "mlp": 1}}, True),
        ({"dropped": {"attention": 1, "mlp": 0}}, False),
        ({"other_parameters": {"vision_tower": 9}}, False),
        ({"usual_blocks": False}, False),
    ],
)
def test_vllm_is_offered_only_where_it_serves(changes, served):
    assert served_by_vllm(size(**changes)) == served


def test_how_the_kept_weights_differ():
    assert _weights(size()) == "The kept weights\nare the original's."
    told = _weights(size(adapter_rank=4, scaled=True, biased=True))
    assert told.index("(rank 4)") < told.index("a factor") < told.index("biases")
    trained = _weights(size(learned_weights=True, scaled=True))
    assert "original's" not in trained
    assert trained.index("were trained with the masks") < trained.index("a factor")


def test_how_far_it_was_held_against_the_masked_model():
    """In float32, where that was measured."""
    in_bfloat16 = {"max_logit_error_bfloat16": 3e-3}
    both = {**in_bfloat16, "max_logit_error_float32": 2e-6, "max_logit_error": 2e-6}
    assert _checked(both, False) == (
        "Against the masked original, logits\ndiffer by at most 2.0e-06 of the largest one in "
        "float32."
    )
    told = _checked(in_bfloat16, True)
    assert told.startswith("As exported, before that training and against the masked original")
    assert told.endswith("3.0e-03 of the largest one in the dtype of the run.")
    assert "without running it" in _checked({}, False)


@pytest.mark.parametrize(
    ("parts", "task"),
    [
        ({}, "text-generation"),
        ({"vision_tower": 5}, "image-text-to-text"),
        ({"vision_tower": 5, "audio_tower": 5}, "audio-text-to-text"),
    ],
)
def test_what_the_hub_calls_it(parts, task):
    assert _task(size(other_parameters=parts)) == task


def test_the_head_names_base_and_licence_where_they_are_known():
    head = _header(size(), {"source": {"base_model": "a/b", "license": "mit"}}).splitlines()
    assert "license: mit" in head
    assert "base_model: a/b" in head
    nothing = _header(size(), {"source": {}})
    assert "license" not in nothing
    assert "base_model" not in nothing


def test_a_budget_other_than_block_parameters_has_its_row():
    assert _budget(size()) == ""
    assert _budget(size(budget="bytes")) == "| bytes, counted | | | 50.00% |\n"


def test_tasks_that_are_kept_say_how_many_solved_questions_stood_in_front():
    def task(shots: int) -> TaskScore:
        return TaskScore(
            0.1, 2, "acc", 0.0, "a", "10", acc=0.5, original=1.0, kept=0.5, shots=shots
        )

    scores = Scores("s", tasks={"one": task(0), "two": task(5)}, kept=0.5, kept_stderr=0.1)
    assert "mean over one, two (5-shot) |" in _scores(size(scores=scores))
