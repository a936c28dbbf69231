"""The run folder: everything that one run made, and where it came from.

    RUN/  config.toml  metrics.jsonl  checkpoint/  selection.safetensors  keep-0.8/  keep-0.5/
          result.json  report.html

A run of `recover` has `model/` and neither sizes nor a selection. `result.json` holds the hashes of
all files that a stage hands to the next, written together with their figures. A stage whose files
are recorded does not run again; a file that has changed since is refused.
"""

import contextlib
import hashlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from disp_llm.config.errors import InputError
from disp_llm.runs.files import atomic, read_checked_json, write_checked_json
from disp_llm.runs.results import PUT_BACK, OriginalResult, RunFigures, as_json, run_figures
from disp_llm.runs.sums import SUMS, changed_files, folder_problems, sha256

MADE_AGAIN = "put it back, or delete it: `resume` makes it again"
"""What to do about a file of a run that has changed. A deleted exported folder is made again too,
or forgotten if `export` had made it."""

NOT_MADE_AGAIN = {
    "config.toml": "put it back; `anyway` takes what it says now",
    "metrics.jsonl": "put it back; `anyway` goes on without",
}
"""The same for files that no later attempt writes."""


class Run:
    """One run folder: its paths, its figures, and whether its files are unchanged.

    Args:
        anyway: whether changed files are used all the same.
    """

    def __init__(self, folder: Path, anyway: bool = False):
        self.folder, self.anyway = folder, anyway
        self.config_file = folder / "config.toml"
        self.metrics_file = folder / "metrics.jsonl"
        self.result_file = folder / "result.json"
        self.page_file = folder / "report.html"
        self.checkpoint_folder = folder / "checkpoint"
        self.scores_file = self.checkpoint_folder / "scores.safetensors"
        self.selection_file = folder / "selection.safetensors"
        self.model_folder = folder / "model"  # of `recover`; those of `prune` are size folders

    @property
    def log(self) -> tuple[Path, ...]:
        """The log of the steps; empty if the run takes none."""
        return (self.metrics_file,) if self.metrics_file.exists() else ()

    def drop_checkpoints(self) -> None:
        """Deletes what only an unfinished run needs: weights and moments take several times the
        model's room."""
        for path in self.checkpoint_folder.glob("step-*.safetensors"):
            path.unlink()

    def size_folder(self, size: str) -> Path:
        """Returns the folder of a size: `keep-0.8`, or `bytes-0.6` under another budget."""
        return self.folder / (f"keep-{size}" if size[0].isdigit() else size)

    def result(self) -> dict[str, Any]:
        """Returns what has been measured so far; empty before anything has."""
        if not self.result_file.exists():
            return {}
        values = read_checked_json(self.result_file, PUT_BACK, self.anyway)
        run_figures(values, str(self.result_file))
        return values

    def located(self, result: dict[str, Any]) -> dict[str, Any]:
        """Returns a result of this run with its models where they lie now: it may have been moved,
        or be named from another folder."""

        def here(model: dict[str, Any], folder: Path) -> dict[str, Any]:
            copy = model.get("converted", "")
            places = {"converted": str(self.folder / Path(copy).name)} if copy else {}
            return model | {"folder": str(folder)} | places

        found = result | {"run": str(self.folder)}
        if "models" in result:
            found["models"] = [here(one, self.size_folder(one["size"])) for one in result["models"]]
        if "model" in result:
            found["model"] = here(result["model"], self.model_folder)
        return found

    @property
    def figures(self) -> RunFigures | None:
        """Figures of the run, typed; None before anything has been measured."""
        values = self.result()
        return run_figures(values, str(self.result_file)) if values else None

    @property
    def original(self) -> OriginalResult | None:
        """Figures of the original; None before they are measured."""
        found = self.figures
        return found.original if found else None

    @property
    def files(self) -> dict[str, str]:
        """Hashes of the recorded files, by name in the folder."""
        return self.result().get("files", {})

    @property
    def identity(self) -> str:
        """Hash of settings, model and texts, which all half-done work carries."""
        if not self.config_file.exists():
            return ""
        source = self.result().get("source", {})
        parts = [sha256(self.config_file), *(source.get(key, "") for key in SOURCES.values())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def update(self, *written: Path, **values: Any) -> dict[str, Any]:
        """Adds values to `result.json`, together with the hashes of written files; an exported
        folder is recorded by its sums."""
        result = self.result() | as_json(values)
        if "status" not in result:  # a run that has not begun: a method was called by itself
            return {}
        hashes = {name: sha256(self.folder / name) for name in map(self._name, written)}
        if hashes:
            result["files"] = result.get("files", {}) | hashes
        write_checked_json(self.result_file, result)
        return result

    @contextlib.contextmanager
    def replacing(self, path: Path) -> Iterator[Path]:
        """Yields a temporary path, whose content at the end replaces a recorded file.

        Both hashes are on record meanwhile, so that a kill leaves a known file.
        """
        with atomic(path) as new:
            yield new
            self.update(path, replacing={self._name(path): sha256(new)})
        self.update(path, replacing={})

    def forget(self, *paths: Path) -> None:
        """Takes files, and exported folders with their figures, off the record."""
        result = self.result()
        names = {path.relative_to(self.folder).as_posix() for path in paths}
        gone = {*names, *(f"{name}/{SUMS}" for name in names)} & result.get("files", {}).keys()
        if gone:
            models = result.get("models", [])
            result["models"] = [m for m in models if self.size_folder(m["size"]) not in paths]
            result["files"] = {k: v for k, v in result["files"].items() if k not in gone}
            write_checked_json(self.result_file, result)

    def forget_deleted(self, made: Iterable[str]) -> None:
        """Takes off the record sizes whose folder, or copy in another format, was deleted, except
        those that an attempt makes again (`made`)."""
        found, kept = self.figures, set(made)
        sizes = [one for one in found.models if one.size not in kept] if found else []
        folders = [self.size_folder(one.size) for one in sizes]
        folders += [self.folder / Path(one.converted).name for one in sizes if one.converted]
        self.forget(*(folder for folder in folders if not folder.exists()))

    def has(self, path: Path) -> bool:
        """Returns whether an earlier attempt finished a file or an exported folder of this run;
        refuses it if it has changed since."""
        if self._name(path) not in self.files or not path.exists():
            return False
        self.require_whole(path)
        return True

    def problems(self, *paths: Path) -> list[InputError]:
        """Returns what differs from the record: of these files and exported folders, or of all."""
        files, replacing = self.files, self.result().get("replacing", {})
        found: list[InputError] = []
        for name in [self._name(path) for path in paths] or files:
            hint = NOT_MADE_AGAIN.get(name, MADE_AGAIN)
            changed = changed_files(self.folder, {name: files[name]}, hint)
            if changed and name in replacing:
                changed = changed_files(self.folder, {name: replacing[name]}, hint)
            found += changed
            folder = (self.folder / name).parent
            if Path(name).name == SUMS and not changed:
                hint = f"put it back, or delete {folder.name}: `resume` makes it again"
                found += folder_problems(folder, hint=hint)
        return found

    @property
    def is_done(self) -> bool:
        """Whether the run has finished and none of its files was deleted."""
        there = all((self.folder / name).exists() for name in self.files)
        return there and self.result().get("status") == "done"

    def require_whole(self, *paths: Path) -> None:
        """Refuses files and exported folders that have changed since they were written."""
        for problem in [] if self.anyway else self.problems(*paths):
            raise problem

    def require_same_source(self, source: dict[str, str], dtype: str) -> None:
        """Refuses another model or text than the run began with, and another data type, which
        `auto` may be on another machine."""
        if self.anyway:
            return
        before = self.result()
        require_same_source(before.get("source", {}), source, self.folder)
        if before.get("dtype", dtype) != dtype:
            raise InputError(
                f"is {dtype} here, and {self.folder} was begun in {before['dtype']}",
                field="dtype",
                hint="go on where it was begun; `anyway` goes on all the same",
            )

    def finish(self, **last: Any) -> dict[str, Any]:
        """Closes the run: done means that every file is on the disk as it was written. Takes
        deleted scores off the record, since nothing reads them any more."""
        if not self.scores_file.exists():
            self.forget(self.scores_file)
        self.update(**last)
        self.require_whole()
        return self.update(status="done")

    def _name(self, path: Path) -> str:
        """Returns the name a file is recorded by; an exported folder has that of its sums file."""
        return (path / SUMS if path.is_dir() else path).relative_to(self.folder).as_posix()


def require_same_source(before: dict[str, str], now: dict[str, str], folder: Path) -> None:
    """Refuses another model or text than a folder's record names."""
    for field, key in SOURCES.items():
        if key in before and key in now and before[key] != now[key]:
            raise other_source(field, folder, f"{before[key]}, now {now[key]}")


def other_source(field: str, folder: Path, change: str) -> InputError:
    """Returns the error about an input that is not the one a folder was made of."""
    return InputError(
        f"is not what {folder} was made of ({change})",
        field=field,
        hint="bring back what it was, or begin in a new `output_dir`; "
        "`anyway` goes on all the same",
    )


SOURCES = {
    "model": "revision",
    "text": "text_sha256",
    "eval_text": "eval_text_sha256",
    "teacher": "teacher_revision",
    "weights_from": "weights_from_revision",
}
"""Setting that names each input of a run, and the key of the input's hash in results."""


@contextlib.contextmanager
def clock(run: Run, name: str, active: bool = True) -> Iterator[None]:
    """Adds the seconds that the context lasts to those of earlier attempts in `result.json`. Only
    an `active` process writes."""
    began = time.perf_counter()
    try:
        yield
    finally:
        if active:
            before = run.result().get(name) or 0.0
            run.update(**{name: round(before + time.perf_counter() - began, 1)})
