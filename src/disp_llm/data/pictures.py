"""Rows of a picture, a prompt and an answer -> examples for a model that sees.

    {"image": "pictures/1.png", "prompt": "…", "answer": "…"}

The picture is a path, seen from the folder of the file that has the row, or what is in such a file
as base64, with or without `data:image/png;base64,` before it.
"""

import base64
import binascii
import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from disp_llm.config.errors import said_by
from disp_llm.data.examples import Example, GivenExamples, Picture, example_of
from disp_llm.data.files import rows_of
from disp_llm.data.reading import base_name, naming
from disp_llm.data.rows import Unusable, kind_of

FIELD = "processor_data"
"""The setting that such files are named in."""

IMAGE = "image"
"""The key of a row's picture."""

LONGEST_QUOTE = 60
"""Characters of a row's picture that a message quotes."""


def decoded(picture: Picture) -> Image.Image:
    """The pixels of a picture, in red, green and blue.

    Raises:
        Unusable: it is none that Pillow reads, or damaged.
        OSError: it is not readable.
    """
    content = picture.content
    try:
        return Image.open(io.BytesIO(content)).convert("RGB")
    except UnidentifiedImageError as error:
        raise Unusable("is no picture", "give a PNG, JPEG or WebP file") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Unusable(f"is damaged ({said_by(error)})", "make or fetch it again") from error


def read_pictures(paths: Sequence[Path], template: str) -> GivenExamples | None:
    """The examples of .jsonl and .json files; None where none is named.

    Raises:
        InputError: a file is missing, damaged or empty, or a row is no such example or its picture
            cannot be read; it names the line.
    """
    if not paths:
        return None
    found: list[Example] = []
    for path in paths:

        def take(row: Any, unit: str, number: int, path: Path = path) -> Example:
            where = f"in {unit} {number}"
            example = example_of(row, where, f"{path.name}, {unit} {number}")
            if example.is_chat:
                raise Unusable(f"has messages {where}", "give a prompt and an answer")
            return replace(example, picture=_picture_of(row, path.parent, where))

        with naming(path, FIELD):
            found += rows_of(path, take)
    return GivenExamples(tuple(found), FIELD, ", ".join(map(base_name, paths)), template)


def _picture_of(row: Any, folder: Path, where: str) -> Picture:
    """The picture of a row, which has been decoded once to see that it can be.

    Raises:
        Unusable: there is none.
    """
    if IMAGE not in row:
        raise Unusable(f"has no {IMAGE} {where}", "give every row a path or base64 as 'image'")
    said = row[IMAGE]
    if not isinstance(said, str) or not said.strip():
        kind = "an empty one" if isinstance(said, str) else kind_of(said)
        raise Unusable(f"has no path or base64 but {kind} as '{IMAGE}' {where}", "correct that row")
    picture = Picture(_place_of(said, folder, where))
    try:
        decoded(picture)
    except Unusable as error:
        raise Unusable(f"has an {IMAGE} that {error.what} {where}", error.hint) from error
    except OSError as error:
        quoted = said[:LONGEST_QUOTE]
        raise Unusable(
            f"has an {IMAGE} that cannot be read {where} ({quoted}: {error.strerror or error})",
            "name a file that is there, from the folder of this one",
        ) from error
    return picture


def _place_of(said: str, folder: Path, where: str) -> Path | bytes:
    _, comma, body = said.partition(";base64,")
    if said.startswith("data:") and comma:
        try:
            return base64.b64decode(body, validate=True)
        except binascii.Error as error:
            raise Unusable(f"has damaged base64 {where}", "encode that picture again") from error
    path = folder / said
    if os.path.isfile(path):  # base64 is a name that no file can have, which pathlib raises
        return path
    try:
        return base64.b64decode(said, validate=True) if len(said) >= SHORTEST_FILE else path
    except binascii.Error:
        return path


SHORTEST_FILE = 64
"""Characters of the base64 of a picture: there is no smaller PNG."""
