"""The commands. Each runs its task, prints tables of the result, and returns what `--json` prints.
The task and its libraries are imported only when it is called."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from disp_llm.cli.errors import flags_of, with_flags
from disp_llm.cli.parsing import command_line
from disp_llm.cli.signals import StopSignals
from disp_llm.reporting.run_tables import show_page, show_run
from disp_llm.reporting.terminal import pieces, progress_bar, say, typed_lines
from disp_llm.runs.folder import Run

Figures = dict[str, Any]


def prune(config: Any) -> Figures:
    """Makes smaller models of a model."""
    from disp_llm.commands.prune import prune

    result = _trained(prune, config)
    if result.figures:  # only the first of several processes has them
        show_run(result.figures)
        show_page(Run(result.folder).page_file)
    return result.figures


def recover(config: Any) -> Figures:
    """Trains a pruned model."""
    from disp_llm.commands.recover import recover

    result = _trained(recover, config)
    if result.figures:
        show_run(result.figures)
    return result.figures


def _trained(task: Callable[..., Any], config: Any) -> Any:
    with closing(StopSignals()) as stop, progress_bar(plain_lines=True) as progress:
        return task(
            config.model,
            config=config,
            progress=stop.watching(progress),
            stop_requested=stop,
            command=command_line(),
        )


def export(config: Any) -> Figures:
    """Writes other sizes of a run."""
    from disp_llm.commands.export import export

    with progress_bar(plain_lines=True) as progress:
        result = export(config, progress=progress, command=command_line())
    show_run(result.figures)
    show_page(Run(result.folder).page_file)
    return result.figures


def eval(config: Any) -> Figures:
    """Measures a model."""
    from disp_llm.commands.eval import eval
    from disp_llm.reporting.measurements import show_evaluation

    with progress_bar(plain_lines=True) as progress:
        result = eval(config.model, config=config, progress=progress)
    show_evaluation(result)
    return result


def bench(config: Any) -> Figures:
    """Times two models in turn."""
    from disp_llm.commands.bench import bench
    from disp_llm.reporting.measurements import show_bench

    with progress_bar(plain_lines=True) as progress:
        result = bench(config, progress=progress)
    show_bench(result)
    return result


def generate(config: Any) -> Figures:
    """Shows models' answers as they are written."""
    from disp_llm.commands.generate import answer, load_models

    with progress_bar(plain_lines=True):
        models = load_models(config)
    result = answer(config, models, pieces())
    for one in result["answers"]:
        speed = f", {found:.1f} a second after the first" if (found := one["tokens_per_s"]) else ""
        say(f"{one['model']}: {one['tokens']} tokens{speed}")
    return result


def chat(config: Any) -> Figures:
    """Answers lines as they are typed."""
    from disp_llm.commands.generate import chat, load_models

    with progress_bar(plain_lines=True):
        models = load_models(config)
    return chat(config, models, typed_lines(), pieces())


def doctor(config: Any) -> Figures:
    """Shows what pruning a model would mean."""
    from disp_llm.commands.doctor import doctor
    from disp_llm.reporting.measurements import show_examination

    with progress_bar(plain_lines=True) as progress:
        result = doctor(config, progress=progress)
    show_examination(result)
    return result


def convert(config: Any) -> Figures:
    """Writes an exported folder in another format."""
    from disp_llm.commands.convert import convert

    with progress_bar(plain_lines=True) as progress:
        result = convert(config, progress=progress)
    say(f"{result['folder']}: {result['to']}, {result['bytes'] / 1e6:,.1f} MB")
    return result


def push(config: Any) -> Figures:
    """Uploads an exported folder."""
    from disp_llm.commands.convert import push

    result = push(config)
    say(f"{result['url']} ({result['commit']})")
    return result


def report(config: Any) -> Figures:
    """Writes the page of a run."""
    from disp_llm.commands.report import report

    result = report(config)
    show_page(Path(result["file"]))
    return result


def verify(config: Any) -> Figures:
    """Checks the files of a folder."""
    from disp_llm.commands.verify import verify

    result, flags = verify(config), flags_of("verify")
    for problem in result["problems"]:
        say(f"{problem['file']}: {problem['what']}; {with_flags(problem['hint'], flags)}")
    if result["ok"]:
        say(f"{config.folder}: whole")
    return result
