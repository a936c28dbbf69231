"""disp-llm makes Hugging Face decoder models physically smaller.

Importing this package costs nothing and has one effect: once transformers' auto classes are loaded,
before or after, they also know the folders that this package writes.
"""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.metadata import version

__version__ = version("disp-llm")

_AUTO = "transformers.models.auto.configuration_auto"


class _AnnounceOnImport(MetaPathFinder):
    """Calls `compact.announce` right after transformers' auto configuration has been imported.

    Importing transformers here instead would cost every `disp-llm --help` half a second.
    """

    def find_spec(self, fullname, path=None, target=None):
        if fullname != _AUTO:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None, fullname
        assert spec.loader is not None, fullname
        load = spec.loader.exec_module

        def load_and_announce(module):
            load(module)
            _announce()

        spec.loader.exec_module = load_and_announce
        return spec


def _announce() -> None:
    from disp_llm.compact import announce

    announce()


if _AUTO in sys.modules:
    _announce()
else:
    sys.meta_path.insert(0, _AnnounceOnImport())
