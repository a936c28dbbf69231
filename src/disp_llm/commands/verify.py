"""Whether a folder is what it was when it was written, from its files alone: nothing is loaded.

Files are held against their hashes, the masks of a run against the models that were cut by them,
and the shapes and counts in every exported folder against its configuration and its card.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disp_llm.commands.front import Caller
from disp_llm.compact.modeling_disp_llm import has_branch
from disp_llm.config.errors import InputError
from disp_llm.config.names import SITES
from disp_llm.config.verify import VerifyConfig
from disp_llm.export.facts import FACTS, figures_of
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.architectures import Branch
from disp_llm.models.files import weight_files
from disp_llm.models.loading import family_of_any, load_config
from disp_llm.models.skeleton import empty_model
from disp_llm.runs.files import read_checked_json
from disp_llm.runs.folder import MADE_AGAIN, PUT_BACK, Run
from disp_llm.runs.ownership import MARK, kind_of
from disp_llm.runs.settings import stored_settings
from disp_llm.runs.sums import (
    CHANGED_FOLDER,
    SUMS,
    Problem,
    extra_files,
    folder_problems,
    require_sums,
)
from disp_llm.runs.tensors import opened, read_tensors

COMPARISON, ROWS_AGAIN = "compare.json", "delete it; every row is made again"
"""What `disp-llm compare` writes, and what to do where it is damaged."""

PACKED = "_packed"
"""How the name of a packed weight ends."""

EXPORT_AGAIN = "copy or export the folder again"
"""What to do about a file of weights that cannot be read."""


def verify(asked: VerifyConfig | str | Path | None = None) -> dict[str, Any]:
    """Checks a run, a comparison or an exported folder.

    Returns:
        `ok`, `kind`, how many `files` were held against their hashes, and `problems`, each with
        `file`, `what` and `hint`.

    Raises:
        InputError: the folder is none of these.
    """
    _, config = Caller.asking(VerifyConfig, asked, {})
    folder = config.folder
    kind, check = _kind(folder)
    files, problems = 0, []
    for found in check(folder):
        if isinstance(found, Problem):
            problems.append(asdict(found))
        else:
            files += found
    return {"ok": not problems, "kind": kind, "files": files, "problems": problems}


Check = Callable[[Path], Iterator[Problem | int]]
"""A folder -> how many files were held against their hashes, and what is wrong."""


def _kind(folder: Path) -> tuple[str, Check]:
    """What a folder is, by its mark or, where that is lost, by what it holds; how it is checked.

    Raises:
        InputError: it is nothing of ours.
    """
    marked = kind_of(folder)
    if marked == "compare" or (not marked and (folder / COMPARISON).is_file()):
        return "comparison", _comparison
    if marked or any((folder / name).is_file() for name in ("config.toml", "result.json")):
        return "run", _run
    if any((folder / name).is_file() for name in ("config.json", FACTS)):
        return "exported folder", lambda folder: _exported(Weights(folder))
    raise InputError(
        f"{folder} is no run, comparison or model folder",
        field="folder",
        hint="name an `output_dir`, or a model folder inside it",
    )


def _collected(check: Callable[..., Iterator[Problem | int]], *inputs: Any) -> Iterator[Any]:
    """What a check finds; a file that stops it is a problem too."""
    try:
        yield from check(*inputs)
    except InputError as error:
        yield Problem(error.field, error.what, error.hint)


def _comparison(folder: Path) -> Iterator[Problem | int]:
    """`compare.json` and the run folders of its methods."""
    yield from _collected(_table, folder)
    yield from _collected(_words, Run(folder))
    found = (path.parent for name in (MARK, "config.toml") for path in folder.rglob(name))
    for run in sorted({*found} - {folder}):
        yield from _run(run)


def _table(folder: Path) -> Iterator[int]:
    read_checked_json(folder / COMPARISON, ROWS_AGAIN)
    yield 1


def _words(run: Run) -> Iterator[Problem | int]:
    """What the original has written for all runs of a comparison."""
    yield from run.problems()
    yield len(run.result().get("files", {}))


def _run(folder: Path) -> Iterator[Problem | int]:
    """The recorded files of a run, and its models."""
    yield from _collected(_recorded, Run(folder))


def _recorded(run: Run) -> Iterator[Problem | int]:
    result = run.result()
    if not result:
        yield Problem(str(run.result_file), "is missing", PUT_BACK)
    files = result.get("files", {})
    yield len(files)
    yield from run.problems()
    yield from _unrecorded(run, result)
    sums = [run.folder / name for name in files if Path(name).name == SUMS]
    exported = [path.parent for path in sums if path.is_file()]
    weights = {folder: Weights(folder) for folder in exported}
    for folder in exported:
        yield from _exported(weights[folder])
    for entry in result.get("models", []):
        size, first = entry["size"], result["first_size"]
        folder = run.model_folder(size, first)
        cut = weights.get(folder, Weights(folder))
        if cut.is_described:
            yield from _collected(_cut_by, run.masks_file(size, first), cut)
    stored_settings(run.folder)


def _unrecorded(run: Run, result: dict[str, Any]) -> Iterator[Problem]:
    """Masks and models in the folder of a finished run that it has not written."""
    known = {Path(name).parts[0] for name in result.get("files", {})}
    found = (path for path in run.folder.glob("m[ao]*") if path.name.startswith(("masks", "model")))
    for path in sorted(found) if result.get("status") == "done" else ():
        if path.name not in known:
            yield Problem(str(path), "was not written by this run", "move it elsewhere")


def _exported(weights: "Weights") -> Iterator[Problem | int]:
    """An exported folder, in a run or anywhere."""
    yield from weights.held_against_sums
    if weights.is_described:
        yield from _collected(_shapes, weights)


def _sums_of(folder: Path) -> Iterator[Problem | int]:
    yield len(require_sums(folder))
    yield from folder_problems(folder)
    for name in extra_files(folder):
        yield Problem(str(folder / name), "was not written with the others", "move it elsewhere")


def _shapes(weights: "Weights") -> Iterator[Problem | int]:
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


def _cut_by(masks_file: Path, weights: "Weights") -> Iterator[Problem | int]:
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


@dataclass(frozen=True)
class Weights:
    """The weight files of a model folder, read as far as a question needs it."""

    folder: Path

    @cached_property
    def held_against_sums(self) -> list[Problem | int]:
        """How many files were held against their sums, and what is wrong with them."""
        return list(_collected(_sums_of, self.folder))

    @property
    def is_described(self) -> bool:
        """Whether the configuration is the one that was written: another says nothing of the
        weights."""
        changed = {one.file for one in self.held_against_sums if isinstance(one, Problem)}
        return str(self.folder / "config.json") not in changed

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
