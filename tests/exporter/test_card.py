"""What the card of a folder says of a size and how it was made."""

from typing import Any

import pytest
from huggingface_hub import ModelCard

from disp_llm.config.names import SITES
from disp_llm.exporter.card import filled, served_by_vllm
from disp_llm.exporter.facts import facts_of
from disp_llm.runs.results import OriginalResult, SizeResult, as_json
from disp_llm.runs.scores import Perplexity, Scores, TaskScore

MEASURED = Perplexity(20.0, 0.5, 900, 30, 30)


def size(**changes) -> SizeResult:
    """Half of a small model, with whole attention."""
    plain = {
        "size": "0.5", "budget": "params", "share_asked": 0.5, "keep": 0.5, "keep_total": 0.6,
        "parameters": 60, "block_parameters": 50, "bytes": 240, "share_of_budget": 0.5,
        "align": 1, "kv_cache": 1.0, "heads_pruned": False, "scaled": False, "biased": False,
        "adapter_rank": 0, "widths_full": dict.fromkeys(SITES, 32), "folder": "run/model",
    }  # fmt: skip
    if "perplexity_masked" in changes:
        plain["measured"] = MEASURED
    return SizeResult(**plain | changes)


RESULT = {
    "original": as_json(OriginalResult(MEASURED, 100, 90, 480)),
    "source": {"model": "a/b", "revision": "0", "text": "text.txt", "eval_text": "more.txt"},
    "versions": {"disp-llm": "1.0"}, "tokens_seen": 5000, "command": "disp-llm prune a/b",
    "hardware": {"cpu": "CPU", "threads": 1, "system": "s"},
}  # fmt: skip
RECOVERED = {
    "distill": 1.0, "tokens_seen": 640, "text": "text.txt", "before": 25.0,
    "eval_text": "more.txt", "eval_text_sha256": "0", "command": "disp-llm recover model",
}  # fmt: skip


def card(form: str = "folder", told: dict[str, Any] | None = None, **changes: Any) -> str:
    """The text of a card, its lines joined."""
    facts = facts_of(size(**changes), RESULT | (told or {}))
    return " ".join(filled(facts, "card.json", form).split())


WHOLE = "The KV cache has the original's size."
HALF = "The KV cache has 50.0% of the original's size"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, f"Widths are multiples of 1. {WHOLE}"),
        ({"dropped": {"attention": 0, "mlp": 1}}, f"Blocks have lost 1 MLP. {WHOLE}"),
        ({"kv_cache": 0.5, "heads_pruned": True}, f"{HALF}: KV heads are pruned."),
        (
            {"kv_cache": 0.5, "dropped": {"attention": 2, "mlp": 0}},
            f"lost 2 attentions. {HALF}. vLLM serves no block without an attention.",
        ),
        ({"logit_errors": {}}, "exported without running it"),
        (
            {"logit_errors": {"max_logit_error": 2e-6}, "perplexity_masked": 30.0},
            "Logits differ from the masked original's by at most 2.0e-06 of the largest one in "
            "float32.",
        ),
        (
            {"logit_errors": {"max_logit_error_bfloat16": 3e-3}, "perplexity_masked": 30.0},
            "3.0e-03 of the largest one in the dtype of the run.",
        ),
        ({"budget": "bytes"}, "| bytes, counted | | | 50.00% |"),
        ({"budget": "bytes", "asked": "6GB"}, "| bytes, counted, for 6GB at most | | |"),
        ({}, "The kept weights are the original's. | |"),
        ({"other_parameters": {"vision_tower": 5}}, "pipeline_tag: image-text-to-text"),
        (
            {"other_parameters": {"vision_tower": 5, "audio_tower": 5}},
            "pipeline_tag: audio-text-to-text",
        ),
    ],
)
def test_what_a_size_is(changes, said):
    assert said in card(**changes)


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
    assert ("vllm serve FOLDER" in card(**changes)) == served


def test_how_the_kept_weights_differ():
    told = card(adapter_rank=4, scaled=True, biased=True)
    assert told.index("(rank 4)") < told.index("a factor") < told.index("Biases stand")
    trained = card(learned_weights=True, scaled=True)
    assert "The kept weights are the original's" not in trained
    assert trained.index("were trained with the masks") < trained.index("a factor")


def test_what_was_done_after_pruning():
    quantised = {"how": "4 bits", "layers": 20}
    told = card(told={"recovered": RECOVERED, "quantised": quantised}, measured=MEASURED)
    assert "The blocks were then trained on 640 tokens of text.txt. The divergence" in told
    assert "was 100% of the loss. Perplexity before that was 25.00 (`disp-llm recover" in told
    assert "The 20 linear layers were then rounded to 4 bits." in told
    assert "| perplexity | not measured | 20.00 ± 0.50 | |" in told  # on another text


def test_how_it_is_loaded_follows_the_format():
    ours, plain, gguf = map(card, ("folder", "plain", "gguf"))
    assert 'from_pretrained("FOLDER", trust_remote_code=True)' in ours
    assert "pretrained=FOLDER,trust_remote_code=True --tasks" in ours
    assert 'from_pretrained("FOLDER")' in plain
    assert "trust" not in plain
    assert "llama-cli -m FOLDER/model.gguf" in gguf
    assert "from_pretrained" not in gguf


def test_the_head_names_base_and_licence_where_they_are_known():
    source = RESULT["source"] | {"base_model": "a/b", "license": "mit"}
    facts = facts_of(size(), RESULT | {"source": source})
    data = ModelCard(filled(facts, "card.json", "folder")).data
    assert (data.license, data.base_model) == ("mit", "a/b")
    data = ModelCard(filled(facts_of(size(), RESULT), "card.json", "folder")).data
    assert (data.license, data.base_model) == (None, None)


def test_tasks_that_are_kept_say_how_many_solved_questions_stood_in_front():
    def task(shots: int) -> TaskScore:
        return TaskScore(
            0.1, 2, "acc", 0.0, "a", "10", acc=0.5, original=1.0, kept=0.5, shots=shots
        )

    scores = Scores("s", tasks={"one": task(0), "two": task(5)}, kept=0.5, kept_stderr=0.1)
    assert "mean over one, two (5-shot) |" in card(scores=scores)
