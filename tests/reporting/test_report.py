"""The page of a run: whole, self-contained, also of a run that was cut off, and without errors in a
browser."""

import json
import re
import shutil
import subprocess
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest
import tomli_w
from conftest import SETTINGS, byte_tokenizer, must_refuse, must_run, tiny_model

import disp_llm
from disp_llm.masks.layout import STREAM_SITES
from disp_llm.reporting.run_data import read_run
from disp_llm.reporting.tables import Table
from disp_llm.runs.files import CHECKSUM, write_checked_json
from disp_llm.runs.folder import Run
from disp_llm.runs.progress import silent

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Words, tags that are open, and everything that would be fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.words, self.fetched, self.unnamed = [], [], [], []
        self.attributes = set()

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.attributes |= set(found)
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [found[key] for key in ("src", "href") if key in found]
        if (tag == "img" and not found.get("alt")) or (
            tag == "svg" and not found.get("aria-label")
        ):
            self.unnamed.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(path) -> tuple[Reader, str]:
    reader = Reader()
    reader.feed(path.read_text())
    assert not reader.open
    assert not reader.unnamed
    assert all(link.startswith("data:") for link in reader.fetched)
    assert path.stat().st_size < 2_000_000
    return reader, " ".join(" ".join(reader.words).split())


def page_of(folder, **flags):
    named = [part for name, value in flags.items() for part in (f"--{name}", value)]
    done = must_run("report", folder, "--json", *named)
    return json.loads(done.stdout)


def test_a_finished_run(small_run, tmp_path):
    folder, result = small_run
    assert (folder / "report.html").exists()  # prune has made it
    assert page_of(folder)["file"] == str(folder / "report.html")
    reader, words = read(folder / "report.html")
    for model in (result["original"], *result["models"]):
        measured = model["measured"]
        assert f"{measured['perplexity']:.2f} ± {measured['perplexity_stderr']:.2f}" in words
        assert f"{model['block_parameters']:,}" in words
    pictures = [link for link in reader.fetched if link.startswith("data:image/png;base64,")]
    text, cut, drawn = (folder / "report.html").read_text(), [], []
    bars = re.findall(r"<title>block (\d): (\d+)</title>", text)
    for model in result["models"]:
        config = json.loads((Path(model["folder"]) / "config.json").read_text())
        for site, widths in config["disp_llm"]["widths"].items():
            if min(widths) < model["widths_full"][site]:
                cut.append(site)
                drawn += [(str(block), str(width)) for block, width in enumerate(widths)]
    assert bars == drawn  # of what is cut alone
    assert len(pictures) == sum(site in STREAM_SITES for site in cut) > 0
    assert result["command"] in words
    for model in result["models"]:
        times = model["measured"]["perplexity"] / result["original"]["measured"]["perplexity"]
        said = f"{model['bytes'] / 1e6:,.1f} MB of {result['original']['bytes'] / 1e6:,.1f} MB"
        assert f"keep {model['size']} : {said}, perplexity ×{times:.2f}" in words


def test_blocks_of_different_widths_are_not_drawn_as_cut(text_file, tmp_path):
    """The first MLP of DeepSeek-V3 is wider than the others."""
    model = tiny_model("deepseek_v3")
    call = {"keep": 1.0, "sites": ["mlp_mid"], "output_dir": tmp_path / "run", "progress": silent}
    disp_llm.prune(model, byte_tokenizer(), text=[text_file.read_text()], **SETTINGS | call)
    text = (tmp_path / "run" / "report.html").read_text()
    assert "<title>block" not in text
    assert "Nothing is cut of" in text


def test_an_interrupted_run(small_run, tmp_path):
    cut = tmp_path / "cut"
    cut.mkdir()
    for name in (".disp-llm", "config.toml", "metrics.jsonl"):
        shutil.copy(small_run[0] / name, cut / name)
    lines = (cut / "metrics.jsonl").read_text()
    (cut / "metrics.jsonl").write_text(lines[: len(lines) // 2])  # ends inside a line
    page_of(cut)
    _, words = read(cut / "report.html")
    assert "no finished size; it has learned for 2 steps" in words or "learned for 3 steps" in words
    assert "--resume" in words


def test_names_with_brackets_are_printed_as_they_are(capsys):
    Table(("C4 [en]",), [("[/x] and some more words",)], "corpus[old].txt").show()
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("C4 [en]", "corpus[old].txt", "[/x]"))


def test_whatever_text_says_is_shown_as_text(small_run, tmp_path):
    """What a model writes, a text begins with or a folder is called cannot become markup."""
    markup = """<img src=x onerror=alert(1)> " ' </title><script>alert(2)"""
    folder, other = tmp_path / markup.replace("/", ""), tmp_path / "other"
    for place in (folder, other):
        shutil.copytree(small_run[0], place)
    result = json.loads((folder / "result.json").read_text())
    for written in (result["original"], *result["models"]):
        written |= {"sample": markup, "prompt": markup}
    result["source"] |= {"text": markup, "eval_text": markup, markup: markup}
    result |= {"command": markup, "files": {}}
    result["hardware"]["cpu"] = result["versions"]["torch"] = markup
    result.pop(CHECKSUM)
    write_checked_json(folder / "result.json", result)
    settings = tomllib.loads((folder / "config.toml").read_text())
    settings["model"] = markup
    (folder / "config.toml").write_text(tomli_w.dumps(settings))
    page_of(other)
    page_of(folder)
    plain, _ = read(other / "report.html")
    page = folder / "report.html"
    reader, words = read(page)
    assert "<script" not in page.read_text()
    assert len(reader.fetched) == len(read(other / "report.html")[0].fetched) > 0
    assert reader.attributes <= plain.attributes
    assert "alert(2)" in words


def test_nothing_on_the_page_may_run_or_be_fetched(small_run):
    page = (small_run[0] / "report.html").read_text()
    assert """content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">""" in page
    assert "<script" not in page


@pytest.mark.parametrize("what", ["nothing", "damaged"])
def test_what_is_no_run_is_refused(small_run, tmp_path, what):
    folder = tmp_path / "run"
    if what == "damaged":
        shutil.copytree(small_run[0], folder)
        (folder / "selection.safetensors").write_bytes(b"no")
    done = must_refuse("report", folder)
    assert "is not a run folder" in done.stderr or "not the file that was written" in done.stderr


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_has_nothing_to_complain_of(small_run, tmp_path):
    page_of(small_run[0], output=tmp_path / "page.html")
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            "--v=0", "--window-size=400,2000", f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={tmp_path / 'page.png'}", f"file://{tmp_path / 'page.html'}",
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_a_page_shows_the_masks_of_each_size(small_run, tmp_path):
    """Whichever was exported first: a run may be cut off before its own, and go on."""
    run = Run(shutil.copytree(small_run[0], tmp_path / "run"))
    result = run.result()
    write_checked_json(run.result_file, result | {"models": result["models"][::-1]})
    shown = {size.figures.size: size for size in read_run(run).sizes}
    for size, folder in (("0.5", "keep-0.5"), ("0.8", "keep-0.8")):
        config = json.loads((run.folder / folder / "config.json").read_text())
        assert shown[size].widths["mlp_mid"] == config["disp_llm"]["widths"]["mlp_mid"]
