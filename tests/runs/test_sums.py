"""Sums of a folder: they speak of its own files alone."""

import pytest

from disp_llm.config.errors import InputError
from disp_llm.runs.sums import SUMS, read_sums, sums_text


@pytest.mark.parametrize("name", ["../other", "a/../../other", "..", "/other", ""])
def test_sums_that_name_what_lies_outside_of_the_folder_are_damaged(name, tmp_path):
    (tmp_path / SUMS).write_text(sums_text({name: "0" * 64}))
    with pytest.raises(InputError, match=f"{SUMS}: is damaged"):
        read_sums(tmp_path)


def test_sums_may_name_what_lies_in_folders_inside(tmp_path):
    sums = {"a/b": "0" * 64, "a..b": "1" * 64}
    (tmp_path / SUMS).write_text(sums_text(sums))
    assert read_sums(tmp_path) == sums
