"""`disp-llm` with other values of constants that no setting reaches: a trial of a method.

python experiments/with_constants.py '{"disp_lab.methods.ddp.RATE": 0.04}' prune MODEL …
"""

import json
import sys
from importlib import import_module

from disp_llm.cli.environment import prepare_libraries
from disp_llm.cli.main import main

constants = json.loads(sys.argv.pop(1))
prepare_libraries()  # it sets what torch reads when it is imported
for name, value in constants.items():
    module, _, constant = name.rpartition(".")
    assert hasattr(import_module(module), constant), f"there is no {name}"
    setattr(import_module(module), constant, value)
main()
