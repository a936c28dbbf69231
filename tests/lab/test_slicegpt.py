"""SliceGPT: a rotated stream computes the same, a narrow one keeps its principal components."""

import copy

import pytest
import torch
from conftest import problem_of
from torch.utils.flop_counter import FlopCounterMode

from disp_lab.baselines.slicegpt import projected_stream, sliced, slicegpt
from disp_llm.config.errors import InputError
from disp_llm.training.problem import PruningProblem, calibration_windows

FIT = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "granite", "phi3")
UNFIT = ("gpt2", "gpt_neox", "falcon", "opt", "phi", "stablelm", "olmo2", "gemma2", "gemma3_text")
CHANGES = {
    "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 7},
    "granite": {"residual_multiplier": 0.5, "embedding_multiplier": 3.0},
}


@pytest.fixture
def problem_with_large_epsilon(text_file, tmp_path):
    """Makes the problem of a model type."""

    def make(model_type: str) -> PruningProblem:
        changes = CHANGES.get(model_type, {})
        if model_type in FIT:
            changes = changes | {"rms_norm_eps": 0.1}  # so large that it must be right
        return problem_of(model_type, text_file.read_text(), tmp_path, **changes)

    return make


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def projecting(problem: PruningProblem, bases: list[torch.Tensor]):
    """The dense model, its stream projected onto the bases at every norm, written out anew; and a
    list of what each norm would have seen without."""
    model, seen = copy.deepcopy(problem.dense.model), []
    factor = getattr(model.config, "residual_multiplier", 1.0)

    def onto(stream, basis):
        seen.append(stream)
        return stream @ basis @ basis.T

    def forward_of(block, first, second):
        def forward(hidden_states, **arguments):
            stream = onto(hidden_states, first)
            normed = block.input_layernorm(stream)
            stream = stream + factor * block.self_attn(normed, **arguments)[0]
            stream = onto(stream, second)
            return stream + factor * block.mlp(block.post_attention_layernorm(stream))

        return forward

    for index, block in enumerate(model.model.layers):
        block.forward = forward_of(block, *bases[2 * index : 2 * index + 2])
    model.model.norm.register_forward_pre_hook(lambda norm, args: (onto(args[0], bases[-1]),))
    return model, seen


@pytest.mark.parametrize("model_type", FIT)
def test_a_rotated_stream_of_full_width_computes_the_same(problem_with_large_epsilon, model_type):
    problem = problem_with_large_epsilon(model_type)
    before = copy.deepcopy(problem.dense.model.state_dict())
    model = sliced(problem, projected_stream(problem).bases(32)).model
    tokens = torch.randint(4, 320, (2, 19))
    assert_close(model(tokens).logits, problem.dense.model(tokens).logits)
    changed = (
        model.model.layers[1].mlp.down_proj.weight - before["model.layers.1.mlp.down_proj.weight"]
    )
    assert changed.abs().max() > 0.1
    after = problem.dense.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("model_type", FIT)
def test_a_narrow_stream_computes_what_a_projected_one_does(problem_with_large_epsilon, model_type):
    problem = problem_with_large_epsilon(model_type)
    bases = projected_stream(problem).bases(11)
    model = sliced(problem, bases).model
    tokens = torch.randint(4, 320, (2, 19))
    wanted = projecting(problem, bases)[0](tokens).logits
    assert_close(model(tokens).logits, wanted)
    assert (wanted - problem.dense.model(tokens).logits).abs().max() > 0.1 * wanted.abs().max()
    assert {p.shape[-1] for p in model.model.norm.parameters()} == {11}


def test_bases_are_the_principal_components_of_the_sliced_stream(problem_with_large_epsilon):
    problem = problem_with_large_epsilon("llama")
    bases = projected_stream(problem).bases(11)
    model, seen = projecting(problem, bases)
    model(calibration_windows(problem).tokens)
    assert len(seen) == len(bases) == 2 * 3 + 1
    for stream, basis in zip(seen, bases, strict=True):
        _, _, right = torch.linalg.svd(stream.flatten(0, 1).double(), full_matrices=False)
        best = right[:11].T @ right[:11]
        torch.testing.assert_close(basis.double() @ basis.double().T, best, atol=1e-4, rtol=0)


@pytest.mark.parametrize("model_type", FIT)
@pytest.mark.parametrize("share", [1.0, 0.6])
def test_counts_are_those_of_the_model(problem_with_large_epsilon, model_type, share):
    problem = problem_with_large_epsilon(model_type)
    made = slicegpt(problem)(share)
    width = made.model.config.hidden_size
    blocks = made.model.model.layers
    assert not made.model.config.tie_word_embeddings
    assert not any(module.training for module in made.model.modules())
    assert made.stored == sum(p.numel() for p in blocks.parameters() if p.dim() == 2)
    one_more = (width + 1) * problem.budget.dense_block_parameters / 32 + 2 * 3 * (width + 1) ** 2
    assert made.stored <= share * problem.budget.dense_block_parameters < one_more
    tokens = torch.randint(4, 320, (1, 16))
    with FlopCounterMode(display=False) as counter:
        made.model(tokens)
    products = counter.get_flop_counts()["Global"]
    linear = sum(n for kind, n in products.items() if str(kind) in ("aten.mm", "aten.addmm"))
    assert linear == 2 * 16 * (made.multiplied + width * 320)


def test_what_lies_inside_of_attention_is_paid_for_too(problem_with_large_epsilon):
    problem = problem_with_large_epsilon("youtu")  # half of its attention is not narrowed
    made = slicegpt(problem)(0.7)
    assert made.stored <= 0.7 * problem.budget.dense_block_parameters


def test_generation_with_a_cache_and_copies(problem_with_large_epsilon):
    model = slicegpt(problem_with_large_epsilon("qwen3"))(0.6).model
    tokens = torch.randint(4, 320, (1, 9))
    kept = model.generate(tokens, max_new_tokens=12, do_sample=False, min_new_tokens=12)
    fresh = model.generate(
        tokens, max_new_tokens=12, do_sample=False, min_new_tokens=12, use_cache=False
    )
    assert torch.equal(kept, fresh)
    wanted = model(tokens).logits
    other = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.zero_()
    assert torch.equal(other(tokens).logits, wanted)


@pytest.mark.parametrize("model_type", UNFIT)
def test_other_architectures_are_refused(problem_with_large_epsilon, model_type):
    with pytest.raises(InputError, match=rf"^model: .*{model_type}"):
        slicegpt(problem_with_large_epsilon(model_type))


def test_a_share_below_one_dimension_is_refused(problem_with_large_epsilon):
    make = slicegpt(problem_with_large_epsilon("llama"))
    with pytest.raises(InputError, match=r"^keep: "):
        make(0.01)
