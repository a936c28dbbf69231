"""What a user can correct, in one line: which field, what is wrong with it, what to do."""

import contextlib
import difflib
import functools
from collections.abc import Iterator


def printable(text: str) -> str:
    """A text as one line that a terminal shows and does not obey: line ends, control characters,
    those that turn the direction of writing, and halves of characters are escaped, as `\\n`."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


class InputError(ValueError):
    """Something that a user can correct.

    `field` is the name of a setting (`keep`, `text`), or of a file. A hint writes settings in
    backticks; the command line turns both into flags.
    """

    def __init__(self, what: str, *, field: str, hint: str):
        super().__init__(printable(f"{field}: {what}; {hint}"))
        self.what, self.field, self.hint = what, field, hint

    def __reduce__(self):  # crosses process boundaries in one piece
        return functools.partial(type(self), field=self.field, hint=self.hint), (self.what,)


@contextlib.contextmanager
def model_is(field: str) -> Iterator[None]:
    """While the context lasts, what is wrong with a model is wrong with the setting that names it,
    which is `model` in some commands, and `folder`, `against` or `teacher` in others."""
    try:
        yield
    except InputError as error:
        if error.field != "model":
            raise
        raise InputError(error.what, field=field, hint=error.hint) from error


LONGEST_MESSAGE = 200
"""Characters that are quoted of another library's message."""


def said_by(error: BaseException) -> str:
    """The message of a library, which may quote line ends, in one line."""
    return " ".join(str(error).split())[:LONGEST_MESSAGE] or type(error).__name__


def nearest(word: str, words: list[str]) -> str:
    """' (nearest: X)' where a known word is near, else nothing."""
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.7)
    return f" (nearest: {near[0]})" if near else ""
