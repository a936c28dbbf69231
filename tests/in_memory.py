"""The compact model of some masks, cut in memory and written as a folder."""

from pathlib import Path
from unittest import mock

from disp_llm.exporter import folders
from disp_llm.exporter.cutting import compact_model
from disp_llm.runs.files import atomic
from disp_llm.runs.sums import write_sums


def export_folder(target, tokenizer, masks, folder: Path, largest: str = "5GB") -> None:
    with mock.patch.object(folders, "MAX_SHARD", largest), atomic(folder) as temporary:
        compact = compact_model(target, masks)
        folders.write_folder(compact, tokenizer, temporary, target.processor)
        write_sums(temporary)
