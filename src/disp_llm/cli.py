"""The command line: one subcommand a function; tables and progress on standard error.

Nothing heavy is imported before a command is known to be well-formed.
"""

import contextlib
import io
import json
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from disp_llm import checks, commands
from disp_llm import config as settings
from disp_llm.config import InputError

USAGE_ERROR = 2
INTERRUPTED = 130


def main() -> None:
    """Entry point: exit code 0, 2 for bad input (one line), 130 for Ctrl-C."""
    arguments = sys.argv[1:]
    as_json = "--json" in arguments
    try:
        command = parse(arguments)
        _prepare_libraries()
        result = COMMANDS[type(command)](command)
        if as_json and result:  # of several processes, the first has it
            print(json.dumps(result, ensure_ascii=False))
    except InputError as error:
        _refuse(error, as_json)
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        _refuse(
            InputError(
                "out of memory",
                flag=f"disp-llm {arguments[0]}",
                mend="shorter windows, a smaller batch or --gradient-checkpointing need less",
            ),
            as_json,
        )
    except KeyboardInterrupt:
        print(f"\ndisp-llm: interrupted{_how_to_go_on(arguments)}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _refuse(error: InputError, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": error.what, "flag": error.flag, "mend": error.mend}))
    print(f"disp-llm: {error}", file=sys.stderr)
    sys.exit(USAGE_ERROR)


def _out_of_memory(error: RuntimeError) -> bool:
    """Of a GPU, which has a class of its own (torch is loaded by then), or of the machine."""
    told = ("not enough memory", "can't allocate memory")
    return type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in told)


def _how_to_go_on(arguments: list[str]) -> str:
    kinds = {"prune": settings.PruneConfig, "recover": commands.RecoverCommand}
    if not arguments or arguments[0] not in kinds:
        return ""
    folder = Path(_value_of("--output-dir", arguments) or kinds[arguments[0]].output_dir)
    if not (folder / "config.toml").exists():
        return ""
    again = [argument for argument in arguments if argument != "--resume"]
    return f"; go on with: disp-llm {shlex.join(again)} --resume"


def parse(arguments: list[str]) -> commands.Command:
    """Arguments -> a command; a recipe, or the run that is resumed, gives `prune` its defaults.

    Raises:
        InputError: unknown or malformed arguments, an unknown recipe, no run to resume.
        SystemExit: with code 0, after `--help`.
    """
    subcommand = tyro.conf.subcommand
    known = (
        Annotated[settings.PruneConfig, subcommand("prune", default=_prune_default(arguments))]
        | Annotated[commands.ExportCommand, subcommand("export")]
        | Annotated[
            commands.RecoverCommand, subcommand("recover", default=_recover_default(arguments))
        ]
        | Annotated[commands.CompareCommand, subcommand("compare")]
        | Annotated[commands.ReportCommand, subcommand("report")]
        | Annotated[commands.EvalCommand, subcommand("eval")]
        | Annotated[commands.DoctorCommand, subcommand("doctor")]
        | Annotated[commands.BenchCommand, subcommand("bench")]
        | Annotated[commands.SaveCommand, subcommand("save")]
        | Annotated[commands.PushCommand, subcommand("push")]
        | Annotated[commands.GgufCommand, subcommand("gguf")]
    )
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                known,
                prog="disp-llm",
                args=arguments or ["--help"],
                description="Makes Hugging Face decoder LLMs physically smaller.",
                config=(
                    tyro.conf.OmitArgPrefixes,
                    tyro.conf.OmitSubcommandPrefixes,
                    tyro.conf.FlagCreatePairsOff,
                ),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise _usage_error(complaint.getvalue(), arguments) from None


def _usage_error(box: str, arguments: list[str]) -> InputError:
    """The first paragraph of the parser's framed message, as one line."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│╭╰─╮╯ ") for line in plain.splitlines()]
    body = [line for line in lines if line]
    end = next((i for i, line in enumerate(lines) if i and not line), len(lines))
    what = " ".join(line for line in lines[1:end] if line) or "unusable arguments"
    flags = re.findall(r"--[a-z][a-z-]*", what)
    near = next((line for line in body[1:] if flags and line.startswith("--")), "").split(" ")[0]
    meant = f"perhaps {near} was meant; " if near and near not in flags else ""
    names = [run.__name__.removeprefix("run_") for run in COMMANDS.values()]
    command = " ".join(["disp-llm", *(name for name in arguments[:1] if name in names)])
    return InputError(
        what.rstrip("."), flag=flags[0] if flags else command, mend=f"{meant}see {command} --help"
    )


def _prune_default(arguments: list[str]) -> settings.PruneConfig:
    """The configuration that flags of `prune` change."""
    plain = settings.PruneConfig(model=tyro.MISSING)
    if arguments[:1] != ["prune"]:
        return plain
    if "--resume" in arguments:
        from disp_llm.runs import stored_config

        return stored_config(Path(_value_of("--output-dir", arguments) or plain.output_dir))
    recipe = _value_of("--recipe", arguments) or plain.recipe
    return settings.apply_recipe(plain, settings.load_recipe(recipe))


def _recover_default(arguments: list[str]) -> commands.RecoverCommand:
    """The configuration that flags of `recover` change."""
    plain = commands.RecoverCommand(folder=tyro.MISSING)
    if arguments[:1] != ["recover"] or "--resume" not in arguments:
        return plain
    from disp_llm.runs import stored_config

    folder = Path(_value_of("--output-dir", arguments) or plain.output_dir)
    return stored_config(folder, commands.RecoverCommand)


def _value_of(flag: str, arguments: list[str]) -> str | None:
    for place, argument in enumerate(arguments):
        if argument == flag and place + 1 < len(arguments):
            return arguments[place + 1]
        if argument.startswith(f"{flag}="):
            return argument.split("=", 1)[1]
    return None


def _prepare_libraries() -> None:
    """Idle threads sleep: spinning ones slow down what shares the machine, and win nothing here.

    Our own progress is enough: transformers' bars and advice would tear it apart.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler of `bench` tells when it starts
    logging.basicConfig(level=logging.WARNING, format="disp-llm: %(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    warnings.filterwarnings("ignore", module="torch|transformers|accelerate")
    warnings.formatwarning = lambda message, *place, **line: str(message)
    import huggingface_hub
    import transformers

    huggingface_hub.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def run_prune(command: settings.PruneConfig) -> dict[str, Any]:
    """`disp-llm prune`"""
    checks.check_prune(command)
    from disp_llm.prune import prune
    from disp_llm.runs import require_available
    from disp_llm.show import progress, show_models

    require_available(command)
    with progress() as report:
        result = prune(command, report)
    if result:
        show_models(result)
    if "curve" in result:
        from disp_llm.files import write_json
        from disp_llm.plots import draw_curve

        write_json(command.output_dir / "curve.json", result["curve"])
        draw_curve(result, command.output_dir / "curve.png")
    if result:
        _keep_page(command.output_dir)
    return result


def run_export(command: commands.ExportCommand) -> dict[str, Any]:
    """`disp-llm export`"""
    checks.check_shares(command.keep, command.budget)
    checks.check_shard_size(command.export.max_shard_size)
    from disp_llm.prune import more_sizes
    from disp_llm.runs import stored_config
    from disp_llm.show import progress, show_models

    stored = stored_config(command.run)
    config = replace(
        stored,
        machine=replace(stored.machine, device=command.device),
        export=replace(
            stored.export,
            align=command.export.align or stored.export.align,
            max_shard_size=command.export.max_shard_size,
        ),
    )
    with progress() as report:
        shares = command.keep if command.budget.budget == "params" else command.budget.target
        result = more_sizes(command.run, config, shares, command.budget, report)
    show_models(result)
    _keep_page(command.run)
    return result


def _keep_page(run: Path) -> None:
    """Writes the page of a run, unless it is there and nothing has changed since."""
    page, result = run / "report.html", run / "result.json"
    if not page.exists() or page.stat().st_mtime_ns < result.stat().st_mtime_ns:
        run_report(commands.ReportCommand((run,)))


def run_recover(command: commands.RecoverCommand) -> dict[str, Any]:
    """`disp-llm recover`"""
    checks.check_recover(command)
    from disp_llm.recover import recover
    from disp_llm.runs import require_available
    from disp_llm.show import progress, show_recovery

    require_available(command)
    with progress() as report:
        result = recover(command, report)
    if result:
        show_recovery(result)
    return result


def run_compare(command: commands.CompareCommand) -> dict[str, Any]:
    """`disp-llm compare`"""
    checks.check_compare(command)
    from disp_llm.compare import compare
    from disp_llm.plots import draw_comparison
    from disp_llm.show import progress, show_comparison

    with progress() as report:
        result = compare(command, report)
    show_comparison(result)
    if any(row["error"] is None for row in result["rows"]):
        draw_comparison(result, command.output_dir / "compare.png")
    return result


def run_report(command: commands.ReportCommand) -> dict[str, Any]:
    """`disp-llm report`"""
    if not command.runs:
        raise InputError("no run is named", flag="RUN", mend="name one or more run folders")
    from disp_llm.report import report
    from disp_llm.show import console

    result = report(command)
    console.print(f"page    {result['file']}  ({result['bytes'] / 1e3:,.0f} kB)", soft_wrap=True)
    return result


def run_eval(command: commands.EvalCommand) -> dict[str, Any]:
    """`disp-llm eval`"""
    checks.check_evaluation(command.evaluation)
    from disp_llm.evaluate import evaluate
    from disp_llm.show import progress, show_evaluation

    with progress() as report:
        result = evaluate(command, lambda done, total: report("perplexity", done, total, {}))
    show_evaluation(result)
    return result


def run_doctor(command: commands.DoctorCommand) -> dict[str, Any]:
    """`disp-llm doctor`"""
    checks.check_keep(command.keep)
    from disp_llm.doctor import examine, measure_alignments
    from disp_llm.show import progress, show_examination

    result = examine(command.model, command.keep, command.length, command.device)
    if command.measure:
        with progress() as report:
            result |= measure_alignments(
                command.model,
                command.device,
                lambda done, total: report("timing alignments", done, total, {}),
            )
    show_examination(result)
    return result


def run_bench(command: commands.BenchCommand) -> dict[str, Any]:
    """`disp-llm bench`"""
    checks.check_bench(command)
    from disp_llm.bench import bench
    from disp_llm.plots import draw_bench
    from disp_llm.show import progress, show_bench

    with progress() as report:
        result = bench(command, lambda name, done, total: report(name, done, total, {}))
    show_bench(result)
    if command.plot is not None:
        draw_bench(result, command.plot)
    return result


def run_save(command: commands.SaveCommand) -> dict[str, Any]:
    """`disp-llm save`"""
    from disp_llm.share import save
    from disp_llm.show import console

    result = save(command)
    console.print(f"{result['folder']}: {result['bytes'] / 1e6:,.1f} MB", soft_wrap=True)
    return result


def run_push(command: commands.PushCommand) -> dict[str, Any]:
    """`disp-llm push`"""
    from disp_llm.share import push
    from disp_llm.show import console

    result = push(command)
    console.print(f"{result['url']} ({result['commit']})", soft_wrap=True)
    return result


def run_gguf(command: commands.GgufCommand) -> dict[str, Any]:
    """`disp-llm gguf`"""
    from disp_llm.gguf_file import write_gguf
    from disp_llm.show import console

    result = write_gguf(command)
    console.print(
        f"{result['file']}: {result['architecture']}, {result['bytes'] / 1e6:,.1f} MB",
        soft_wrap=True,
    )
    return result


COMMANDS: dict[type, Callable[[Any], dict[str, Any]]] = {
    settings.PruneConfig: run_prune,
    commands.ExportCommand: run_export,
    commands.RecoverCommand: run_recover,
    commands.CompareCommand: run_compare,
    commands.ReportCommand: run_report,
    commands.EvalCommand: run_eval,
    commands.DoctorCommand: run_doctor,
    commands.BenchCommand: run_bench,
    commands.SaveCommand: run_save,
    commands.PushCommand: run_push,
    commands.GgufCommand: run_gguf,
}
