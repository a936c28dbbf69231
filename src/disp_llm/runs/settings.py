"""The settings of a run: stored when it begins, compared when it resumes."""

import os
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from disp_llm.config.errors import InputError
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recipes import apply_recipe, flat, resolved
from disp_llm.config.recover import RecoverConfig
from disp_llm.runs.files import atomic
from disp_llm.runs.folder import Run
from disp_llm.runs.ownership import is_unused, kind_of, require_ours
from disp_llm.runs.provenance import provenance

Stored = TypeVar("Stored", bound=PruneConfig | RecoverConfig)


FREE_TO_CHANGE = ("resume", "anyway", "output_dir", "track", "shard")
"""Settings that a resumed run may change."""


def stored_config(folder: Path, kind: type[Stored] = PruneConfig) -> Stored:
    """Returns the configuration of an earlier attempt at a command."""
    path = folder / "config.toml"
    command, found = "prune" if kind is PruneConfig else "recover", kind_of(folder)
    hint = f"name the `output_dir` of an earlier `disp-llm {command}`"
    if found == command:
        hint = "put config.toml back, or begin in a new `output_dir`"
    elif found:
        raise InputError(f"is a run of `disp-llm {found}`", field=str(folder), hint=hint)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        return apply_recipe(kind(tables["model"]), tables)
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise InputError(
            "is not a run folder" if isinstance(error, FileNotFoundError) else f"damaged ({error})",
            field=str(folder),
            hint=hint,
        ) from error


def stored_settings(folder: Path) -> PruneConfig | RecoverConfig:
    """Returns the configuration of a run of either command."""
    return stored_config(folder, RecoverConfig if kind_of(folder) == "recover" else PruneConfig)


def available(config: Stored) -> Stored:
    """Returns the settings, with a `resume` of "auto" decided; refuses a run folder that cannot be
    used. Creates nothing."""
    run = Run(config.output_dir, config.anyway)
    require_ours(run.folder, "prune" if isinstance(config, PruneConfig) else "recover")
    if config.resume == "auto":
        config = replace(config, resume=run.config_file.exists())
    if config.resume:
        _require_same_settings(run, config)
    elif not is_unused(run.folder):
        goes_on = "add `resume` to go on with it, or " if run.config_file.exists() else ""
        raise InputError(
            f"{run.folder} exists and is not empty",
            field="output_dir",
            hint=f"{goes_on}name another folder",
        )
    parent = next(path for path in (run.folder, *run.folder.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(
            f"{parent} cannot be written", field="output_dir", hint="name another folder"
        )
    return config


def _require_same_settings(run: Run, config: PruneConfig | RecoverConfig) -> None:
    before = stored_config(run.folder, type(config))
    run.has(run.config_file)
    if isinstance(before, PruneConfig) and isinstance(config, PruneConfig):
        align, chunk = config.align or before.align, config.chunk or before.chunk
        config = replace(config, align=align, chunk=chunk)
    for (key, had), (_, now) in zip(flat(resolved(before)), flat(resolved(config)), strict=True):
        if had not in (now, _from_root(now)) and key.split(".")[-1] not in FREE_TO_CHANGE:
            raise InputError(
                f"this run has {key} = {had}, not {now}",
                field="resume",
                hint="leave that setting out, or start a new run in another `output_dir`",
            )


def _from_root(value: Any) -> Any:
    """Returns a name as the absolute path that is stored while it names something here."""
    return os.path.abspath(value) if isinstance(value, str) and value else value


def begin_run(config: PruneConfig | RecoverConfig, command: str, **facts: Any) -> None:
    """Writes a new run's settings, and records where its figures come from. For a resumed run,
    records that again if code, libraries or hardware have changed."""
    run, now = Run(config.output_dir, config.anyway), provenance(config.machine.seed, command)
    if not config.resume:
        stored = replace(config, anyway=False)
        with atomic(run.config_file) as temporary:
            temporary.write_text(tomli_w.dumps(resolved(stored)), encoding="utf-8")
    before = run.result()
    if not before:
        run.update(run.config_file, **facts, status="running", run=str(run.folder), **now)
        return
    resumed = before.get("resumed", [])
    last = [before, *resumed][-1]
    elsewhere = any(last.get(key) != now[key] for key in ("commit", "versions", "hardware"))
    changed = {"resumed": [*resumed, now]} if elsewhere else {}
    run.update(status="running", **changed)
