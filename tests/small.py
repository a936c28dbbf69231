"""Settings of a run that takes a second, and its command line."""

from collections.abc import Iterable

from disp_llm.config.methods import Reads, method_names, reads_of

LEARNING = {"steps": 6, "length": 32}
CALIBRATION = {"calibration_sequences": 4, "calibration_length": 32}
BATCH = {"batch": 1}
MEASURING = {
    "context": 32,
    "windows": 4,
    "rounds": 0,
    "least_cut": 0.0,
    "dtype": "float32",
    "device": "cpu",
}
SETTINGS = LEARNING | BATCH | CALIBRATION | MEASURING


def settings_of(method: str) -> dict[str, object]:
    """Those of `SETTINGS` that a method reads."""
    reads = reads_of(method) if method in method_names() else Reads()
    return (
        (LEARNING | BATCH if reads.steps else {})
        | (CALIBRATION if reads.calibration else {})
        | MEASURING
    )


class Usual(str):
    """A word of `SMALL`, for where the command line says nothing else."""


def usual(words: Iterable[str]) -> list[str]:
    """Flags that `settled` leaves out where they are given once more."""
    return [Usual(word) for word in words]


def flag_of(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"


SMALL = [Usual(word) for name, value in SETTINGS.items() for word in (flag_of(name), value)]
"""The flags of `SETTINGS`; see `settled`."""


def instead(command: Iterable[object], *flags: object) -> list[object]:
    """A command line with some flags in place of those that it has."""
    found: list[object] = []
    drops = False
    for word in command:
        drops = word in flags if str(word).startswith("--") else drops
        if not drops:
            found.append(word)
    return [*found, *flags]


def settled(arguments: Iterable[object]) -> list[str]:
    """A command line without those flags of `SMALL` that it gives itself, or that its method or
    recipe does not read: a flag is given once, and only where something reads it."""
    words = list(arguments)
    given = {str(word).partition("=")[0] for word in words if not isinstance(word, Usual)}
    method = str(words[words.index("--method") + 1]) if "--method" in words else "learned"
    read = settings_of(method)
    if "paper" in words or "paper-released-code" in words:  # which begin at random
        read = {name: value for name, value in read.items() if name not in CALIBRATION}
    if not given & {"--text", "--dataset", "--examples", "--processor-data"}:
        read = read | {"length": 32}  # of the text that the model writes
    unwanted = given | set(map(flag_of, SETTINGS)) - set(map(flag_of, read))
    found: list[str] = []
    drops = False
    for word in words:
        if isinstance(word, Usual):
            drops = word in unwanted if word.startswith("--") else drops
        else:
            drops = False
        if not drops:
            found.append(str(word))
    return found
