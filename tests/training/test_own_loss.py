"""Examples with a loss of their own, as a program with its own heads hands them over: the loss of
next tokens, written that way, is that of answers, wherever an example stands."""

import json

import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from torch import nn

import disp_llm
from disp_llm.data.example_tokens import stream_of_examples
from disp_llm.data.examples import TaskExample
from disp_llm.data.in_memory import read_input_examples
from disp_llm.data.windows import Windows, joined
from disp_llm.masks.masking import masked
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.architectures import family_of
from disp_llm.training.losses import Teacher, mean_losses

ROWS = [{"prompt": f"{n} and {n}", "answer": f" is {n + n}"} for n in range(3, 40, 3)]


def prunable(model_type: str = "llama") -> PrunableModel:
    model = tiny_model(model_type)
    return PrunableModel(model, family_of(model.config))


def usual():
    given = read_input_examples(ROWS, "auto")
    return stream_of_examples(given, byte_tokenizer())


def own(target: PrunableModel):
    """The same examples, whose loss is computed outside."""

    def example(one) -> TaskExample:
        counted = one.counted[1:]

        def loss(states):
            logits = target.head(states.to(target.model.dtype))[:-1][counted]
            return nn.functional.cross_entropy(logits.float(), one.tokens[1:][counted])

        return TaskExample(tuple(one.tokens.tolist()), loss, int(counted.sum()), one.place)

    given = read_input_examples(list(map(example, usual().examples)), "auto")
    return stream_of_examples(given, byte_tokenizer())


def draw(stream, count: int = 4, length: int = 48) -> Windows:
    return stream.random_windows(count, length, torch.Generator().manual_seed(5))


@pytest.mark.parametrize("model_type", ["llama", "lfm2"])  # which keeps them apart and which cannot
def test_the_loss_of_answers_written_by_hand_is_that_of_answers(model_type):
    target = prunable(model_type)
    for theirs, ours in zip(usual().alone(), own(target).alone(), strict=True):
        assert torch.allclose(mean_losses(target, theirs), mean_losses(target, ours), atol=1e-5)
        assert theirs.choices == ours.choices
    theirs, ours = draw(usual()), draw(own(target))
    assert torch.equal(theirs.tokens, ours.tokens)
    assert all(part.end <= 48 for parts in ours.tasks for part in parts)
    whole = theirs.counted.clone()  # less what was cut off, which has no loss
    for row, parts in enumerate(ours.tasks):
        assert len(parts) > 1
        whole[row, parts[-1].end :] = False
    expected = mean_losses(target, Windows(theirs.tokens, whole, theirs.places))
    assert torch.allclose(mean_losses(target, ours), expected, atol=1e-5)


def test_examples_in_a_window_do_not_see_each_other():
    target = prunable()
    windows = draw(own(target), 1)
    changed = windows.tokens.clone()
    first = windows.tasks[0][0]
    changed[0, : first.end] = changed[0, : first.end].flip(0)
    rest = (windows.tasks[0][1:],)
    later = [
        Windows(tokens, windows.counted, windows.places, tasks=rest)
        for tokens in (windows.tokens, changed)
    ]
    assert torch.equal(*(mean_losses(target, one) for one in later))


def test_texts_stand_beside_them_in_their_order_and_alone_have_a_teacher():
    target = prunable()
    task = draw(own(target), 2)
    text = Windows(torch.randint(0, 200, (3, 48), generator=torch.Generator().manual_seed(0)))
    mixed = joined([task, text])[torch.tensor([3, 0, 4, 1, 2])]
    assert [bool(parts) for parts in mixed.tasks] == [False, True, False, True, False]
    teacher = Teacher(target, 1.0)  # itself, which has nothing to teach: text costs nothing
    found = mean_losses(target, mixed, teacher)
    assert torch.allclose(found[[0, 2, 4]], torch.zeros(3), atol=1e-5)
    assert torch.allclose(found[[1, 3]], mean_losses(target, task), atol=1e-5)
    again = mean_losses(target, mixed)
    assert torch.allclose(again[[4, 0, 2]], mean_losses(target, text), atol=1e-5)
    assert mixed.to(torch.device("cpu")).tasks == mixed.tasks
    alone = torch.cat([mean_losses(target, mixed[row : row + 1]) for row in range(5)])
    assert torch.allclose(alone, again, atol=1e-5)


def test_a_text_is_learned_beside_them(text_file, tmp_path):
    """Scored a window at a time, of which some have text alone; weights count both."""
    target = prunable()
    tokenizer = byte_tokenizer()
    examples = [TaskExample(tuple(one.tokens.tolist()), loss, count)
                for one, loss, count in _of(own(target))]  # fmt: skip
    settings = {
        "text": text_file, "steps": 2, "length": 32, "calibration_sequences": 4,
        "calibration_length": 32, "rounds": 0, "context": 32, "windows": 2, "keep": 0.6,
        "eval_text": text_file,
    }  # fmt: skip
    result = disp_llm.prune(
        target.model, tokenizer, examples=examples, weights=[1, 3], output_dir=tmp_path / "run",
        **settings,
    )  # fmt: skip
    assert result.size(0.6).measured.perplexity > 0
    with pytest.raises(
        disp_llm.InputError, match=r"weights: must be as many as there are texts \(2;"
    ):
        disp_llm.prune(target.model, tokenizer, examples=examples, weights=[1], **settings)
    with pytest.raises(disp_llm.InputError, match="a loss of their own and others with answers"):
        disp_llm.prune(target.model, tokenizer, examples=[*examples, *ROWS], **settings)


def test_masks_take_the_same_gradient():
    target = prunable()
    one, other = next(usual().alone()), next(own(target).alone())
    gradients = []
    with masked(target) as masking:
        for windows in (one, other):
            mask = torch.ones(target.layout.entries, requires_grad=True)
            masking.set(mask)
            mean_losses(target, windows).sum().backward()
            assert mask.grad is not None
            gradients.append(mask.grad)
    assert gradients[0].abs().max() > 1e-4
    assert torch.allclose(*gradients, atol=1e-6)


def test_a_program_prunes_and_measures_by_its_own_loss(tmp_path):
    target = prunable()
    model, tokenizer = target.model, byte_tokenizer()
    given = read_input_examples(ROWS, "auto")
    examples = [TaskExample(tuple(one.tokens.tolist()), loss, count)
                for one, loss, count in _of(own(target))]  # fmt: skip
    theirs = disp_llm.eval(model, tokenizer, examples=ROWS, context=32)
    ours = disp_llm.eval(model, tokenizer, examples=examples, context=32)
    assert ours["perplexity"] == pytest.approx(theirs["perplexity"], rel=1e-5)
    assert ours["tokens"] == theirs["tokens"]
    assert ours["text"].startswith(f"choices in {len(ROWS)} examples in memory (sha256:")
    assert given.sha256 != read_input_examples(examples, "auto").sha256
    result = disp_llm.prune(
        model, tokenizer, examples=examples * 2, keep=0.6, output_dir=tmp_path / "run",
        steps=2, length=32, batch=2, calibration_sequences=2, calibration_length=32, rounds=0,
        context=32,
    )  # fmt: skip
    size = result.size(0.6)
    assert size.measured.perplexity == pytest.approx(size.perplexity_masked, rel=1e-4)
    said = json.loads((tmp_path / "run" / "result.json").read_text())
    assert said["source"]["eval_text"].startswith("choices in every tenth of")


def _of(stream):
    return [(one, one.loss, one.choices) for one in stream.examples]


@pytest.mark.parametrize("tokens", [(), (3, 9999), (-1, 3)])
def test_ids_that_the_tokenizer_has_not_are_refused(tokens):
    examples = [TaskExample(tokens, torch.sum, place="here")]
    given = read_input_examples(examples, "auto")
    with pytest.raises(disp_llm.InputError, match="here, has no token ids below"):
        stream_of_examples(given, byte_tokenizer())


def test_there_is_no_answer_to_compare():
    target = prunable()
    examples = [TaskExample((1, 2, 3), lambda states: states.sum())]
    found = disp_llm.eval(target.model, byte_tokenizer(), examples=examples, context=32)
    assert "answers" not in found
