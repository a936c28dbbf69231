"""The weights of an exported folder against what describes them: shapes against the configuration,
counts against the card, kept dimensions against the masks that they were cut by."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disp_llm.compact.modeling_disp_llm import has_branch
from disp_llm.config.errors import InputError
from disp_llm.config.names import SITES
from disp_llm.export.facts import FACTS, figures_of
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.architectures import Branch
from disp_llm.models.files import weight_files
from disp_llm.models.loading import family_of_any, load_config
from disp_llm.models.skeleton import empty_model
from disp_llm.runs.folder import MADE_AGAIN
from disp_llm.runs.sums import CHANGED_FOLDER, Problem
from disp_llm.runs.tensors import opened, read_tensors

PACKED = "_packed"
"""How the name of a packed weight ends."""

EXPORT_AGAIN = "copy or export the folder again"
"""What to do about a file of weights that cannot be read."""


@dataclass(frozen=True)
class Weights:
    """The weight files of a model folder, read as far as a question needs it."""

    folder: Path

    @cached_property
    def expected(self) -> PrunableModel:
        """The model that the configuration describes, without weights."""
        config = load_config(str(self.folder))
        return PrunableModel(empty_model(config), family_of_any(config))

    @cached_property
    def _files(self) -> dict[str, Path]:
        """Which file holds each tensor."""
        found = {}
        for path in weight_files(self.folder):
            with opened(path, EXPORT_AGAIN) as file:
                found |= dict.fromkeys(file.keys(), path)
        return found

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors, by name; of a weight that is stored packed, the shape that is
        stored beside it."""
        found = {}
        for path in set(self._files.values()):
            with opened(path, EXPORT_AGAIN) as file:
                for name in file.keys():  # noqa: SIM118
                    found[name] = tuple(file.get_slice(name).get_shape())
        for name in [name for name in found if name.endswith(PACKED)]:
            weight = name.removesuffix(PACKED)
            found[weight] = tuple(self._tensor(f"{weight}_shape").tolist())
        return found

    def _tensor(self, name: str) -> Tensor:
        if name not in self._files:
            raise InputError(f"lacks {name}", field=str(self.folder), hint=CHANGED_FOLDER)
        with opened(self._files[name], EXPORT_AGAIN) as file:
            return file.get_tensor(name)

    def kept(self) -> Iterator[tuple[str, Tensor | int]]:
        """For every site (`layers.3.attn_in`) the kept dimensions, or how many where the folder
        does not say which."""
        target, names = self.expected, {}
        for name, module in target.model.named_modules():
            names[module] = name
        config = target.model.config
        text = config.get_text_config()
        for i, block in enumerate(target.blocks):

            def indices(path: str, buffer: str, block: Any = block) -> Tensor:
                module = block.get_submodule(path)
                if not hasattr(module, buffer):
                    return torch.arange(text.hidden_size)
                chunks = self._tensor(f"{names[module]}.{buffer}") * module.chunk
                return (chunks.unsqueeze(1) + torch.arange(module.chunk)).flatten()

            branches: tuple[Branch, Branch] = target.branches_of(block)
            for branch, prefix in zip(branches, ("attn", "mlp"), strict=True):
                there = has_branch(block, branch.scatter)
                first_in, *_ = branch.gathers or (branch.gather,)
                first_out, *_ = branch.scatters or (branch.scatter,)
                places = {"in": (first_in, "kept_in"), "out": (first_out, "kept_out")}
                for side, (path, buffer) in places.items():
                    kept = indices(path, buffer) if there else torch.arange(0)
                    yield f"layers.{i}.{prefix}_{side}", kept
            widths = getattr(config, "disp_llm", {}).get("widths", {})
            experts = branches[1].experts
            lanes = getattr(text, experts.count) if experts else 1
            for site in set(widths) - {site for site in SITES if site != "mlp_mid"}:
                of_all = lanes if site == "mlp_mid" else 1  # the masks have dropped experts as well
                yield f"layers.{i}.{site}", widths[site][i] * of_all


def wrong_shapes(weights: Weights) -> Iterator[Problem]:
    """Shapes of the weights against the configuration, and counts against the card."""
    folder = weights.folder
    model = weights.expected.model
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    for name, tensor in model.state_dict().items():
        shape = weights.shapes.get(name)
        if shape is None and name in tied:
            continue
        if shape != tuple(tensor.shape):
            what = (
                "lacks" if shape is None else f"holds {shape} in place of {tuple(tensor.shape)} for"
            )
            yield Problem(str(folder), f"{what} {name}", CHANGED_FOLDER)
    figures = figures_of(folder)
    counted = {
        "parameters": weights.expected.parameters,
        "block_parameters": weights.expected.block_parameters,
    }
    for key, count in counted.items():
        if figures is not None and figures.get(key) != count:
            what = f"states {figures.get(key)} {key}, and the weights have {count}"
            yield Problem(str(folder / FACTS), what, CHANGED_FOLDER)


def cut_otherwise(masks_file: Path, weights: Weights) -> Iterator[Problem]:
    """The masks of a size against the model that was cut by them."""
    masks = read_tensors(masks_file, MADE_AGAIN)
    for site, kept in weights.kept():
        masks.require(site in masks.tensors, f"there is no {site}")
        mask = masks.tensors[site]
        same = torch.equal(mask, kept) if isinstance(kept, Tensor) else len(mask) == kept
        if not same:
            what = f"was not cut by {masks_file.name} ({site})"
            hint = "delete the folder: `resume` exports it again"
            yield Problem(str(weights.folder), what, hint)
            return
