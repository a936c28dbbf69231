"""Types and shapes are checked while the tests run."""

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import TypeCheckError

from disp_llm.data.randomness import random_stream
from disp_llm.data.windows import Windows
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.layout import Layout


def test_shapes_are_checked():
    with pytest.raises(TypeCheckError):
        project(torch.zeros(2, 2), Budget.__new__(Budget), 0.5)
    with pytest.raises(TypeCheckError):
        Windows(torch.zeros(3, dtype=torch.int64))


def test_types_of_what_has_no_shapes_are_checked():
    with pytest.raises(BeartypeCallHintParamViolation):
        random_stream("scores", "none")
    with pytest.raises(BeartypeCallHintParamViolation):
        Layout("none")
