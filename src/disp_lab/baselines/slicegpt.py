"""SliceGPT (arXiv 2401.15024): rotates the residual stream and cuts off its last dimensions.

RMSNorm commutes with an orthogonal rotation Q of the residual stream, so the layers before and
after it can absorb the rotation (Theorem 1). Q_l holds the eigenvectors of `C_l = Σ X_lᵀ·X_l` over
calibration text, by falling eigenvalue (section 3.3); its first K columns are kept (3.4). With the
stream `Z = X·Q_l` of width K, and g the gain of the norm:

    reads     W -> W·diag(g)·Q_l·√(D/K)     a norm over K numbers gives √(K/D) of one over D
    writes    W -> Q_{l+1}ᵀ·W               biases alike; embedding and head use the outermost Q
    stream    Z -> Z·Q_lᵀ·Q_{l+1}           two matrices per block, stored and multiplied

As in the authors' release, X_l is the input of the l-th norm in the model sliced up to there, so
the calibration text runs through the model once per size. (The paper's X_l is the norm's output,
which did worse: perplexity 155 in place of 113 at share 0.7 of SmolLM2-135M.)

Here the head reads K columns too; the release by default leaves what the last block writes, the
last norm and the head at full width.

T tokens of a window, D residual stream, K kept of it, L blocks.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from disp_lab.parts.baseline import (
    Baseline,
    BaselineModel,
    Maker,
    as_stored,
    copied,
    require_one_kind,
    stored_numbers,
)
from disp_llm.compact.modeling_disp_llm import cut, linear_at, matrix_of
from disp_llm.config.errors import InputError
from disp_llm.masks.prunable import PrunableModel
from disp_llm.methods.block_by_block import block_inputs, run_block
from disp_llm.models.architectures import Branch
from disp_llm.training.problem import PruningProblem, calibration_windows

ALIKE = 0.05
"""Largest relative error of a block's branches run one by one; bfloat16 gives some 0.01."""


def slicegpt(problem: PruningProblem) -> Maker:
    """Makes models with the first principal components of the stream; each size runs the
    calibration text through the model again."""
    stream = projected_stream(problem)

    def make(share: float) -> BaselineModel:
        return as_stored(sliced(problem, stream.bases(_width(problem, share))))

    return make


def _unfit(problem: PruningProblem) -> InputError:
    return InputError(
        "SliceGPT rotates a stream that one RMSNorm reads before each branch, attention before MLP,"
        f" and a block of {problem.dense.model.config.model_type} is not made so",
        field="model",
        hint="use a model like Llama or another method",
    )


def _width(problem: PruningProblem, share: float) -> int:
    """Returns the largest K at which the matrices fit the share, with two of K·K per block. Those
    inside attention that do not touch the stream keep their size."""
    blocks = problem.budget.layout.blocks
    all_numbers = stored_numbers(problem.dense)
    inside = sum(block.inside for block in blocks)
    for width in range(blocks[0].hidden, 0, -1):
        rotations = 2 * len(blocks) * width**2
        narrowed = (all_numbers - inside) * width / blocks[0].hidden
        if narrowed + inside + rotations <= share * all_numbers:
            return width
    raise InputError("leaves no dimension of the stream", field="keep", hint="ask for more")


def _norms(module: nn.Module) -> list[str]:
    """Returns names of the children that hold vectors only."""
    return [
        name
        for name, child in module.named_children()
        if {parameter.dim() for parameter in child.parameters()} == {1}
    ]


@dataclass(frozen=True)
class Step:
    """One branch of one block, which adds `factor · module(norm(x))` to the stream x."""

    index: int
    """Index of the block."""
    block: nn.Module
    norm: str
    """Name of the branch's norm in the block."""
    branch: Branch


def _steps(prunable: PrunableModel) -> Iterator[Step]:
    """Yields the 2·L branches in running order."""
    for index, block in enumerate(prunable.blocks):
        for norm, branch in zip(_norms(block), prunable.branches_of(block), strict=True):
            yield Step(index, block, norm, branch)


def _factor(prunable: PrunableModel) -> float:
    """Factor of a branch's output before it is added to the stream (Granite); 1 elsewhere."""
    return getattr(prunable.model.config, "residual_multiplier", 1.0)


@dataclass(frozen=True)
class ProjectedStream:
    """Runs the dense model's branches on a stream that is projected before each of them."""

    problem: PruningProblem
    states: list[Float[Tensor, "1 T D"]]
    """Inputs of the first block, one tensor per window."""
    arguments: list[dict[str, Any]]
    """The other arguments of each block, which its attention gets too."""

    @torch.no_grad()
    def bases(self, width: int) -> list[Float[Tensor, "D K"]]:
        """Returns the first K columns of Q for each of the 2·L branches and for the end."""
        progress = self.problem.job.count("scoring")
        states = [state.float() for state in self.states]
        bases = [self._principal(states)[:, :width]]
        steps = list(_steps(self.problem.dense))
        for done, step in enumerate(steps, start=1):
            onto_kept = bases[-1] @ bases[-1].T  # (D, D)
            states = [self._after(step, state @ onto_kept) for state in states]
            bases.append(self._principal(states)[:, :width])
            progress(done, len(steps))
        return bases

    def require_fit(self) -> None:
        """Checks that the branches of the first block, run one by one, give the block's output.

        Raises:
            InputError: they do not.
        """
        dense = self.problem.dense
        before = self.states[0].float()
        after = run_block(dense.blocks[0], self.states[0], self.arguments[0]).float()
        stepwise = before
        for step in itertools.islice(_steps(dense), 2):
            stepwise = self._after(step, stepwise)
        if (stepwise - after).norm() > ALIKE * (after - before).norm():
            raise _unfit(self.problem)

    def _after(self, step: Step, state: Float[Tensor, "1 T D"]) -> Float[Tensor, "1 T D"]:
        dense = self.problem.dense
        normed = step.block.get_submodule(step.norm)(state.to(dense.dtype))
        is_attention = step.branch is dense.family.attention
        arguments = self.arguments[step.index] if is_attention else {}
        out = run_block(step.block.get_submodule(step.branch.gather), normed, arguments)
        return state + _factor(dense) * out.float()

    def _principal(self, states: list[Float[Tensor, "1 T D"]]) -> Float[Tensor, "D D"]:
        """Returns the eigenvectors of the stream's second moments, by falling eigenvalue."""
        moments = torch.zeros((), dtype=torch.float64, device=states[0].device)
        for state in states:
            moments = moments + (state[0].T @ state[0]).double()
        return torch.linalg.eigh(moments).eigenvectors.flip(1).float()


@torch.no_grad()
def projected_stream(problem: PruningProblem) -> ProjectedStream:
    """Returns the stream at the first block, for all calibration windows.

    Raises:
        InputError: the model does not fit SliceGPT, or a window is longer than the text or than the
            model can read.
    """
    require_one_kind(problem)
    dense = problem.dense
    for module, count in ((dense.model.base_model, 1), *((block, 2) for block in dense.blocks)):
        norms = [module.get_submodule(name) for name in _norms(module)]
        if len(norms) != count or any(isinstance(norm, nn.LayerNorm) for norm in norms):
            raise _unfit(problem)
    windows = calibration_windows(problem).tokens.to(dense.device)
    states, arguments = block_inputs(dense, windows)
    stream = ProjectedStream(problem, states, [of_windows[0] for of_windows in arguments])
    stream.require_fit()
    return stream


@torch.no_grad()
def sliced(problem: PruningProblem, bases: list[Float[Tensor, "D K"]]) -> PrunableModel:
    """Slices the model to a stream of width K by Q of each of the 2·L branches and of the end."""
    made = copied(problem)
    model, dtype, width = made.model, made.dtype, bases[0].shape[1]
    epsilon = model.config.rms_norm_eps
    for step, basis, following in zip(_steps(made), bases[:-1], bases[1:], strict=True):
        inputs = _narrow_norm(step.block, step.norm, basis, epsilon)
        for path in step.branch.reads:
            _rotate(linear_at(step.block, path), inputs=inputs)
        _rotate(linear_at(step.block, step.branch.writes), outputs=following)
        change = following.T @ basis - torch.eye(width, device=basis.device)
        Rotation((change / _factor(made)).to(dtype)).join(step)
    embedding: Any = model.get_input_embeddings()
    embedded = embedding.weight.float() @ bases[0]
    [final] = _norms(model.base_model)
    inputs = _narrow_norm(model.base_model, final, bases[-1], epsilon)
    _rotate(model.get_output_embeddings(), inputs=inputs)
    embedding.weight, embedding.embedding_dim = nn.Parameter(embedded.to(dtype)), width
    config, shape = model.config, problem.budget.layout.blocks[0]
    config.hidden_size, config.tie_word_embeddings = width, False
    config.head_dim = shape.q // config.num_attention_heads
    model.eval().requires_grad_(False)
    return made


def _narrow_norm(
    module: nn.Module, name: str, basis: Float[Tensor, "D K"], epsilon: float
) -> Float[Tensor, "D K"]:
    """Replaces a norm over D numbers by one over K without a gain. Returns what the layers behind
    it absorb: `diag(g)·Q·√(D/K)`."""
    hidden, width = basis.shape
    norm: Any = module.get_submodule(name)
    # The norm itself tells its gain, which is its weight or, in Gemma, its weight + 1.
    gain = norm(torch.ones(hidden, device=basis.device)) * math.sqrt(1 + epsilon)
    fresh = type(norm)(width, eps=epsilon * hidden / width)
    module.set_submodule(name, fresh.to(norm.weight.device, norm.weight.dtype))
    return gain[:, None] * basis * math.sqrt(hidden / width)


def _rotate(linear: Any, inputs: Tensor | None = None, outputs: Tensor | None = None) -> None:
    """Rotates a layer's inputs, its outputs or both by (D, K) matrices, which narrows it."""
    weight = matrix_of(linear).float()
    bias = None if linear.bias is None else linear.bias.float()
    if inputs is not None:
        weight = weight @ inputs
    if outputs is not None:
        weight = outputs.T @ weight
        bias = None if bias is None else bias @ outputs
    cut(linear, weight.shape[1], weight.shape[0])
    matrix_of(linear).copy_(weight)
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(linear.weight.dtype))


class Rotation(nn.Module):
    """Adds `Z·(Q_lᵀ·Q_{l+1} − 1)` to a branch's output; the block then adds Z itself."""

    def __init__(self, weight: Float[Tensor, "K K"]):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.stream: Tensor | None = None

    def join(self, step: Step) -> None:
        """Adds itself to a block. Hooks are methods, so that a copy of the model has its own."""
        step.block.add_module(f"{step.branch.scatter}_rotation", self)
        step.block.get_submodule(step.norm).register_forward_pre_hook(self.keep)
        step.block.get_submodule(step.branch.scatter).register_forward_hook(self.add)

    def keep(self, norm: nn.Module, args: tuple) -> None:
        """Stores Z, the input of the norm."""
        [self.stream] = args

    def add(self, module: nn.Module, args: tuple, output):
        """Returns the output with the addition, to the first element if it is a tuple."""
        assert self.stream is not None, "a branch that runs without its norm"
        added = nn.functional.linear(self.stream, self.weight)
        self.stream = None
        if isinstance(output, tuple):
            return (output[0] + added, *output[1:])
        return output + added


BASELINE = Baseline(
    name="slicegpt",
    title="SliceGPT",
    reference="Ashkboos et al., SliceGPT: Compress Large Language Models by Deleting Rows and "
    "Columns (arXiv 2401.15024)",
    prepare=slicegpt,
)
