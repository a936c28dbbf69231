"""What a task returns: its figures, and the contents of its run folder, ready to use. Also writes
the page of a run."""

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from disp_llm.commands.api import called, takes
from disp_llm.commands.convert import convert
from disp_llm.config.commands import ReportConfig
from disp_llm.config.errors import InputError
from disp_llm.config.targets import Target
from disp_llm.masks.selection_file import kept_by_site
from disp_llm.models.devices import resolve_device, resolve_dtype
from disp_llm.models.loading import load_model
from disp_llm.reporting.page import write_page
from disp_llm.reporting.run_tables import perplexity_said, run_table
from disp_llm.runs.folder import Run
from disp_llm.runs.results import RunFigures, SizeResult, as_json, run_figures


@takes(ReportConfig)
def report(run: ReportConfig | str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Writes the page of a run, one self-contained HTML file; returns its path and its bytes."""
    config = called(ReportConfig, run, options).config
    path = write_page(Run(config.run, config.anyway), config.output)
    return {"file": str(path), "bytes": path.stat().st_size}


@dataclass(frozen=True, repr=False)
class RunResult:
    """What a task left in its run folder."""

    folder: Path
    figures: dict[str, Any]
    """`result.json`, after `export` with the asked sizes only; empty beyond the first process."""
    device: str = "cpu"
    """Device that models are loaded to."""
    temporary: Any = None
    """Owner of a temporary run folder, which is deleted with this result."""

    def report(self) -> Path:
        """Writes the page of the run, one self-contained HTML file, and returns its path."""
        return write_page(Run(self.folder))

    @property
    def _typed(self) -> RunFigures | None:
        """Figures of the run; None in processes other than the first."""
        return run_figures(self.figures) if self.figures else None

    def _trainable(self, folder: Path) -> PreTrainedModel:
        """Loads a model folder with trainable weights, ready for a Trainer, PEFT or `generate`."""
        device = resolve_device(self.device)
        dtype = resolve_dtype(self.figures["dtype"], device)
        return load_model(str(folder), device, dtype).requires_grad_(True)


@dataclass(frozen=True, repr=False)
class PruneResult(RunResult):
    """A run of `prune`, and the sizes that it or `export` made."""

    def __repr__(self) -> str:
        sizes = (f"{size.size}: perplexity {perplexity_said(size)}" for size in self.sizes)
        return f"PruneResult({str(self.folder)!r}, {', '.join(sizes) or 'no sizes'})"

    def _repr_html_(self) -> str:
        """Returns the table of sizes as HTML, for notebooks."""
        found = self._typed
        table = run_table(found) if found else None
        return table.html() if table else escape(repr(self))

    @property
    def sizes(self) -> list[SizeResult]:
        """Figures of the exported models, in the order in which they were asked for."""
        found = self._typed
        return found.models if found else []

    def to_frame(self) -> Any:
        """Returns a pandas `DataFrame` with a row for every size and a column for every figure."""
        import pandas

        frame = pandas.json_normalize([as_json(size) for size in self.sizes])
        # A notebook shows the first ten columns and the last.
        first = [name for name in ("size", "keep", "measured.perplexity") if name in frame]
        return frame[first + [name for name in frame if name not in first]]

    def plot(self, axes: Any = None) -> Any:
        """Draws perplexity against keep, with standard errors, and the original's as a line.

        Args:
            axes: matplotlib axes to draw on, which are returned. Default: those of a new figure.
        """
        if axes is None:
            from matplotlib import pyplot

            axes = pyplot.figure().add_subplot()
        found = self._typed
        sizes = [(one.keep, one.measured) for one in self.sizes if one.measured]
        axes.errorbar(
            [keep for keep, _ in sizes],
            [measured.perplexity for _, measured in sizes],
            [measured.perplexity_stderr or 0 for _, measured in sizes],
            marker="o", capsize=3, label="pruned",
        )  # fmt: skip
        if found and found.original:
            original = found.original.measured.perplexity
            axes.axhline(original, linestyle="--", color="gray", label="original")
        axes.set(xlabel="keep: share of block parameters", ylabel="perplexity", yscale="log")
        axes.legend()
        return axes

    def size(self, share: float | str | None = None) -> SizeResult:
        """Returns the figures of one size: a share, or a size as it was asked for (`6GB`). Default:
        the first that was asked for.

        Raises:
            InputError: the run has no such size.
        """
        sizes = self.sizes
        if not sizes:
            what, hint = "no size has been made yet", "go on with the run by `resume`"
            raise InputError(what, field=str(self.folder), hint=hint)
        if share is None:
            return sizes[0]
        asked = Target.of(share)
        if asked.unit:
            found = [s for s in sizes if s.asked == str(asked)]
        else:
            found = [s for s in sizes if abs(s.share_asked - asked.amount) < 1e-9]
        if not found:
            raise InputError(
                f"{share} is not among {', '.join(s.size for s in sizes)}",
                field="keep",
                hint="ask for one of these, or make it by `disp-llm export`",
            )
        return found[0]

    def model(self, share: float | str | None = None) -> PreTrainedModel:
        """Loads the smaller model of a size, with trainable weights."""
        return self._trainable(self._model_folder(share))

    def masks(self, share: float | str | None = None) -> dict[str, Tensor]:
        """Returns the kept indices of every site of a size: `{"layers.3.attn_in": (K), ...}`,
        sorted, int64."""
        size = self.size(share)
        kept, _ = kept_by_site(Run(self.folder).selection_file, size.size)
        return {f"layers.{i}.{site}": part for site in kept for i, part in enumerate(kept[site])}

    def _model_folder(self, share: float | str | None) -> Path:
        """Returns the model folder of a size, wherever the run has been moved. Default: what fits,
        if the run was asked to decide tokens and bits, else the first size."""
        found = self._typed
        fit = found.fit if found else None
        if fit and (share is None or Target.of(share).is_same_as(Target.of(fit.asked))):
            return self.folder / fit.folder_name
        return Run(self.folder).size_folder(self.size(share).size)

    def save(self, folder: str | Path, share: float | str | None = None) -> Path:
        """Copies the model folder of a size; the copy's card names its new place."""
        convert(self._model_folder(share), to="folder", output_dir=folder)
        return Path(folder)


@dataclass(frozen=True, repr=False)
class RecoverResult(RunResult):
    """A run of `recover`."""

    def __repr__(self) -> str:
        found = self._typed
        if found is None or found.before is None or found.model is None:
            return f"RecoverResult({str(self.folder)!r}, not trained)"
        change = f"{found.before.measured} -> {found.model.measured}"
        return f"RecoverResult({str(self.folder)!r}, perplexity {change})"

    @property
    def model(self) -> PreTrainedModel:
        """Trained model, with weights that can be trained on; each access loads it anew."""
        return self._trainable(Run(self.folder).model_folder)
