"""Tables of times that were measured on this machine, in the user's cache.

A cache is a convenience: a table that is damaged is measured again, and one that cannot be written
is measured another time; a warning says so.
"""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from disp_llm.config.errors import InputError
from disp_llm.config.schema import as_type
from disp_llm.runs.files import read_json, write_json
from disp_llm.runs.ownership import is_unused, mark
from disp_llm.runs.provenance import hardware, versions

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where measured tables are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "disp-llm" / "latency"


IGNORED = "what was measured is not used"
"""What comes of a damaged table."""


def cached(name: str, kind: Any) -> Any:
    """The table of that name as the type that is declared for it; None where there is none that
    can be used."""
    path = cache_folder() / name
    try:
        if not path.is_file():
            return None
        return as_type(read_json(path, IGNORED), kind, field=str(path), hint=IGNORED)
    except (InputError, OSError) as error:
        logger.warning("%s", error)
        return None


def keep(name: str, table: dict[str, Any]) -> None:
    """Writes a table under that name, if the cache can be written."""
    folder = cache_folder()
    try:
        if is_unused(folder):
            folder.mkdir(parents=True, exist_ok=True)
            mark(folder, "cache")
        write_json(folder / name, table)
    except OSError as error:
        logger.warning("%s: %s; what was measured is not kept", folder, error.strerror)
    except InputError as error:
        logger.warning("%s: %s; what was measured is not kept", error.field, error.what)


def table_key(model: PreTrainedModel, *more: object) -> str:
    """Names a table by everything that its times depend on."""
    described = json.dumps(
        [
            {k: v for k, v in model.config.to_dict().items() if not k.startswith("_")},
            str(model.dtype),
            next(model.parameters()).device.type,
            more,
            hardware(),
            versions(),
        ],
        sort_keys=True,
        default=str,
    )
    return hashlib.sha256(described.encode()).hexdigest()[:24]
