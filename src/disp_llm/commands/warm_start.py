"""A larger size of the same run, trained already: the weights that a smaller one begins with.

Sizes that are trained one after the other, from the largest on, each begin with what was learned
before them.
"""

from dataclasses import replace
from pathlib import Path

from disp_llm.commands.planning import sites_of
from disp_llm.config.errors import InputError, model_is
from disp_llm.config.parts import MachineConfig
from disp_llm.config.recover import RecoverConfig
from disp_llm.exporter.carrying import carry, is_size
from disp_llm.exporter.exported import original_of, run_of
from disp_llm.exporter.facts import size_of
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks
from disp_llm.masks.selection_file import load_masks
from disp_llm.models.loading import Loaded, load, load_config, require_unquantised
from disp_llm.runs.folder import Run
from disp_llm.runs.settings import stored_config

OTHER = "name the model folder of a larger size of that run, or of its recovery"


def take_weights(config: RecoverConfig, student: Loaded) -> Loaded:
    """Gives a size, in place, the weights of a larger one, wherever it keeps them; what it keeps
    beyond that stays as it was exported. The result names the revision of both.

    Raises:
        InputError: the two are no sizes of one run, the first is not the larger, or not all of the
            weights lie in this process.
    """
    folder, larger = Path(config.model), Path(config.weights_from)
    if student.sharding is not None:
        raise InputError(
            "needs all weights in every process", field="weights_from", hint="give a `shard` of no"
        )
    with model_is("weights_from"):
        require_unquantised(config.weights_from, load_config(config.weights_from))
    run = _run_of_both(folder, larger)
    machine = MachineConfig(device="cpu", dtype=config.machine.dtype)
    with model_is("teacher"):  # which has its shapes
        name = original_of(folder) or config.teacher
        original = load(name, machine, dense_only=True, empty=True)
    dense = PrunableModel.of(original, sites_of(stored_config(run.folder), original.family))
    masks = [_masks_of(run, one, dense) for one in (larger, folder)]
    if not masks[0].kept.sum() > masks[1].kept.sum():
        raise InputError(f"{larger} is no larger than {folder}", field="weights_from", hint=OTHER)
    with model_is("weights_from"):
        trained = load(config.weights_from, machine)
    states = [one.model.state_dict() for one in (trained, student)]
    for one, kept, state in zip((larger, folder), masks, states, strict=True):
        if not is_size(dense, kept, state):
            raise InputError(
                f"{one} is not what {run.folder} says of that size",
                field="weights_from",
                hint="bring back the files of that run, or export the size again",
            )
    carry(dense, (masks[0], states[0]), (masks[1], states[1]))
    source = student.source | {"weights_from_revision": trained.source["revision"]}
    return replace(student, source=source)


def _run_of_both(folder: Path, larger: Path) -> Run:
    """The run that two folders are sizes of."""
    found, other = (run_of(one) for one in (folder, larger))
    if not (found and other and found[0].folder.samefile(other[0].folder)):
        raise InputError(
            f"{larger} is no size of the run that {folder} comes from",
            field="weights_from",
            hint=OTHER,
        )
    return found[0]


def _masks_of(run: Run, folder: Path, dense: PrunableModel) -> Masks:
    """The masks of the size that a folder is of."""
    masks = load_masks(run.selection_file, dense.layout, size_of(folder))
    if masks.compensation.mean_inputs is not None:
        raise InputError(
            "cannot be had where biases stand for what was pruned, of every size other ones",
            field="weights_from",
            hint="leave it out",
        )
    return masks
