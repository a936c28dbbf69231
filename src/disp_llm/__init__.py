"""disp-llm makes Hugging Face decoder models physically smaller.

The command line's tasks are functions here: `prune`, `recover`, `eval`, `bench`, `generate`,
`doctor`, `export`, `convert`, `push`, `report` and `verify` (docs/api.md). Each is imported on
first access.

Importing this package is cheap and has one side effect: transformers' auto classes, whether loaded
before or after, also load the folders that this package writes.
"""

import importlib
import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from disp_llm.commands.bench import bench as bench
    from disp_llm.commands.convert import convert as convert
    from disp_llm.commands.convert import push as push
    from disp_llm.commands.doctor import doctor as doctor
    from disp_llm.commands.eval import eval as eval
    from disp_llm.commands.export import export as export
    from disp_llm.commands.generate import generate as generate
    from disp_llm.commands.prune import prune as prune
    from disp_llm.commands.recover import recover as recover
    from disp_llm.commands.report import report as report
    from disp_llm.commands.verify import verify as verify
    from disp_llm.config.errors import InputError as InputError
    from disp_llm.data.examples import TaskExample as TaskExample

__version__ = version("disp-llm")

_TASKS = "prune recover eval bench generate convert doctor export report verify".split()

_LAZY = {name: f"commands.{name}" for name in _TASKS} | {
    "push": "commands.convert",
    "InputError": "config.errors",
    "TaskExample": "data.examples",
}
"""Module of each name of the Python API, below `disp_llm`."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"disp_llm.{_LAZY[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


_AUTO = "transformers.models.auto.configuration_auto"


class _RegisterOnImport(MetaPathFinder):
    """Calls `compact.register` right after transformers' auto configuration has been imported."""

    # transformers has no entry points. Importing it here would load torch, which takes seconds, for
    # every `disp-llm --help`.
    def find_spec(self, fullname, path=None, target=None):
        if fullname != _AUTO:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None, fullname
        assert spec.loader is not None, fullname
        load = spec.loader.exec_module

        def load_and_register(module):
            load(module)
            _register()

        spec.loader.exec_module = load_and_register
        return spec


def _register() -> None:
    from disp_llm.compact import register

    register()


if _AUTO in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _RegisterOnImport())
