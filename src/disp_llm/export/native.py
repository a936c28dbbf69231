"""The weights of a folder of mixtures as files of the original's own architecture have them.

transformers packs the weights of all experts into one tensor when it loads a model, and unpacks
them when it saves one; our folders have them packed.
"""

import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from disp_llm.config.errors import InputError
from disp_llm.models.files import weight_files
from disp_llm.models.loading import empty_model, load_config
from disp_llm.models.wholeness import AGAIN
from disp_llm.runs.files import write_json
from disp_llm.runs.tensors import read_tensors


def native_weights(folder: Path, native: Any, to: Path) -> list[Path]:
    """The weights of a folder under the names that the original's files have, where transformers
    packs what lies in parts there; which files they are.

    Args:
        native: the original's model with the folder's widths, which is given its weights.
    """
    state = {}
    for path in weight_files(folder):
        state |= read_tensors(path, AGAIN).tensors
    native.load_state_dict(state, strict=False, assign=True)
    native.tie_weights()
    native.save_pretrained(to)
    return [path for path in to.iterdir() if path.name.startswith("model")]


def native_model(folder: Path, plain: dict[str, Any]) -> PreTrainedModel:
    """The original's model of a plain configuration, without weights.

    Raises:
        InputError: its tensors are not those of the folder: another width follows from one that is
            cut, such as a shared expert's from the others', or a head's from the number of heads.
    """
    with tempfile.TemporaryDirectory() as temporary:
        write_json(Path(temporary) / "config.json", plain)
        native = empty_model(load_config(temporary))
    stated = empty_model(load_config(str(folder))).state_dict()
    shapes = {name: tensor.shape for name, tensor in native.state_dict().items()}
    if shapes != {name: tensor.shape for name, tensor in stated.items()}:
        raise InputError(
            "the original's architecture ties another width to the one that is cut",
            field="plain",
            hint="prune with other `sites`: experts alone, or mlp_mid without heads",
        )
    return native
