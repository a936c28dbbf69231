"""What leaves the machine holds only what belongs there, and says nothing of where it was made."""

import json
import shutil
from pathlib import Path

import pytest
import tomli_w
import transformers
from conftest import SMALL, byte_tokenizer, masks_of, must_refuse, must_run, run_command, tiny_model
from huggingface_hub import ModelCard
from in_memory import export_folder

from disp_lab.reporting import plots as comparison_plots
from disp_llm.exporter.exported import original_of
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.architectures import family_of
from disp_llm.runs.ownership import mark
from disp_llm.runs.sums import SUMS, folder_problems, write_sums


@pytest.fixture
def folder(small_run, tmp_path) -> Path:
    """A copy of an exported folder."""
    return shutil.copytree(small_run[0] / "keep-0.5", tmp_path / "model")


def tree(root: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


def refused(done) -> str:
    """The one line that a command was refused with."""
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    return line


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


INSIDE = {
    "model/copy": "lies inside the folder",
    "new/../model/deep/copy": "lies inside the folder",
}
PLACES = {
    ".": "is a folder",
    "model": "is a folder",
    "taken": "exists",
    "taken/copy": "is a file",
    "taken/new/copy": "is a file",
    "dangling": "exists",
    "new/" + "x" * 300: "more than 200 bytes",
    "new/" + "ü" * 101: "more than 200 bytes",
}


@pytest.mark.parametrize(
    ("to", "place", "why"),
    [
        *(("folder", place, why) for place, why in (INSIDE | PLACES).items()),
        *(("gguf", place, why) for place, why in PLACES.items()),
    ],
)
def test_a_place_that_cannot_be_is_one_line_and_nothing_is_written(
    to, place, why, folder, tmp_path
):
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = tree(tmp_path)
    asked = ("convert", folder, "--to", to, "--output-dir", tmp_path / place)
    line = refused(run_command(*asked))
    assert line.startswith("disp-llm: --output-dir: ")
    assert why in line
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["model.safetensors", "README.md", "tokenizer.json"])
@pytest.mark.parametrize("to", ["outside", ".env"])
def test_a_link_in_the_place_of_a_file_is_refused(name, to, folder, tmp_path):
    secret = tmp_path / to if to == "outside" else folder / to
    secret.write_text("SECRET")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    assert f"{name}: is a link" in refused(
        run_command("convert", folder, "--to", "folder", "--output-dir", tmp_path / "new")
    )
    assert not (tmp_path / "new").exists()


def test_a_link_in_the_place_of_the_folder_of_templates_is_refused(folder, tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.jinja").write_text("SECRET")
    templates = folder / "additional_chat_templates"
    shutil.copytree(tmp_path / "secret", templates)
    write_sums(folder)
    shutil.rmtree(templates)
    templates.symlink_to(tmp_path / "secret")
    assert "is a link" in refused(
        run_command("convert", folder, "--to", "folder", "--output-dir", tmp_path / "new")
    )


def test_what_is_left_out_is_named_and_stays(folder, tmp_path, caplog):
    (folder / ".env").write_text("SECRET")
    (folder / "notes\n.md").write_text("SECRET")
    done = must_run("convert", folder, "--to", "folder", "--output-dir", tmp_path / "new", "--json")
    assert caplog.messages == [r"left out, as no part of a model folder: .env, 'notes\n.md'"]
    assert json.loads(done.stdout)["left_out"] == [".env", "notes\n.md"]
    assert tree(tmp_path / "new").keys() == tree(folder).keys() - {".env", "notes\n.md"}


def test_sums_are_those_of_the_copy(folder, tmp_path):
    write_sums(folder)
    card, copy = folder / "README.md", tmp_path / "copy"
    card.write_text(card.read_text() + "\nMore about it.\n")  # cards are edited by hand
    must_run("convert", folder, "--to", "folder", "--output-dir", copy)
    assert not folder_problems(copy)
    assert (copy / SUMS).read_text().count("\n") == len(list(copy.iterdir()))
    assert "More about it." in (copy / "README.md").read_text()


@pytest.mark.parametrize("damaged", ["config.json", "README.md"])
def test_a_damaged_folder_is_not_shared(damaged, folder, tmp_path):
    write_sums(folder)
    if damaged == "README.md":
        (folder / damaged).write_text("---\nlicense: [\n---\n# A model\n")
    else:
        edit(folder / damaged, bos_token_id=7)
    assert damaged in refused(
        run_command("convert", folder, "--to", "folder", "--output-dir", tmp_path / "new")
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("old", [False, True])
def test_settings_of_the_original_say_nothing_of_its_maker(tmp_path, old):
    """Paths and code of others, which transformers carries along from what it has loaded."""
    original, exported = tmp_path / "original", tmp_path / "exported"
    tiny_model("llama").save_pretrained(original)
    byte_tokenizer().save_pretrained(original)
    place, code = "/home/SECRET/llama", {"AutoModel": "SECRET/repository--modeling.Model"}
    edit(original / "config.json", _name_or_path=place, cache_dir=place, auto_map=code)
    edit(original / "generation_config.json", assistant=place)
    tokens = ["tokenization_SECRET.Tokens", None]
    tokens = tokens if old else {"AutoTokenizer": tokens}
    edit(original / "tokenizer_config.json", name_or_path=place, files=place, auto_map=tokens)
    pixels, processor = {"size": 4, "cache_dir": place, "auto_map": code}, "processor_config.json"
    (original / processor).write_text(json.dumps({"image_processor": pixels, "auto_map": code}))
    model = transformers.AutoModelForCausalLM.from_pretrained(original).requires_grad_(False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(original)
    target = PrunableModel(model, family_of(model.config), processor=(original / processor,))
    export_folder(target, tokenizer, masks_of("random", target.layout), exported, "5GB")
    assert not [name for name, content in tree(exported).items() if b"SECRET" in (content or b"")]
    config = json.loads((exported / "config.json").read_text())
    assert config["auto_map"]["AutoConfig"] == "configuration_disp_llm.DispLlamaConfig"
    assert json.loads((exported / processor).read_text()) == {"image_processor": {"size": 4}}
    transformers.AutoTokenizer.from_pretrained(exported, trust_remote_code=True)


@pytest.fixture(scope="module")
def secret_places(tmp_path_factory, llama_folder, text_file) -> dict[str, Path]:
    """A run, its recovery and a comparison, with everything in folders of telling names."""
    root = tmp_path_factory.mktemp("places")
    places = {name: root / f"SECRET {name}" for name in ("models", "texts", "runs", "recipes")}
    for place in places.values():
        place.mkdir()
    model = shutil.copytree(llama_folder, places["models"] / "llama")
    edit(model / "config.json", _name_or_path=str(model))
    (model / "README.md").write_text(f"---\nbase_model: {model}\nlicense: mit\n---\n# A model\n")
    text, more = places["texts"] / "text.txt", places["texts"] / "more.txt"
    content = text_file.read_text()
    text.write_text("PRIVATE words. " + content)
    more.write_text("PRIVATE words. " + content)
    recipe = places["recipes"] / "own.toml"
    recipe.write_text("[learn]\nsteps = 6\n")
    texts = ("--text", text, more, "--eval-text", text)
    commands = {
        "run": ("prune", model, "--config", recipe, "--keep", 0.5, 0.8, *SMALL),
        "recovered": (
            *("recover", places["runs"] / "run" / "keep-0.5", "--tokens", 128, "--length", 32),
            *("--context", 32, "--windows", 4, "--dtype", "float32"),
        ),
        "comparison": (
            *("compare", model, "--methods", "magnitude", "--keep", 0.7, "--rounds", 0),
            *("--context", 32, "--windows", 4, "--dtype", "float32"),
        ),
    }
    for name, command in commands.items():
        must_run(*command, *texts, "--output-dir", places["runs"] / name)
    return {name: places["runs"] / name for name in commands}


def test_nothing_that_is_shared_says_where_it_was_made(secret_places, tmp_path):
    run, recovered = secret_places["run"], secret_places["recovered"]
    for flags in ((recovered,), (run, "--output", tmp_path / "page.html")):
        must_run("report", *flags)
    shared = [*run.glob("keep-*/*"), *recovered.glob("model/*"), tmp_path / "page.html"]
    shared += [run / "report.html", recovered / "report.html"]
    shared += [secret_places["comparison"] / "compare.md"]
    assert {"card.json", "README.md", "config.json"} <= {path.name for path in shared}
    for path in shared:
        content = path.read_bytes()
        assert b"SECRET" not in content, path
        assert str(Path.home()).encode() not in content, path
    for path in (*run.glob("keep-*/*"), *recovered.glob("model/*")):
        assert b"PRIVATE" not in path.read_bytes(), path  # the text itself


def test_plots_name_the_model(secret_places, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(comparison_plots, "save", lambda figure, path: figures.append(figure))
    comparison = secret_places["comparison"] / "compare.json"
    comparison_plots.draw_comparison(json.loads(comparison.read_text()), tmp_path / "a.png")
    assert figures[0].get_suptitle() == "llama"


def test_what_is_shared_still_says_what_it_is(secret_places):
    run, recovered = secret_places["run"], secret_places["recovered"]
    card = ModelCard((run / "keep-0.5" / "README.md").read_text())
    assert "# llama at keep" in card.text
    assert "Masks were chosen on text.txt, more.txt" in card.text
    assert "disp-llm prune llama --config own.toml --keep 0.5 0.8" in card.text
    assert card.data.license == "mit"
    assert card.data.base_model is None
    facts = json.loads((recovered / "model" / "card.json").read_text())["result"]
    assert facts["source"]["model"] == "llama"
    assert facts["recovered"]["command"].startswith("disp-llm recover keep-0.5 --tokens 128")
    assert facts["hardware"]["cpu"]
    page = (run / "report.html").read_text()
    assert "<td>[&#39;text.txt&#39;, &#39;more.txt&#39;]</td>" in page
    assert "<h1>llama, made smaller</h1>" in page


def test_the_teacher_is_found_through_the_run(secret_places, tmp_path):
    """A card has only the last part of a local original's path."""
    run, recovered = secret_places["run"], secret_places["recovered"]
    assert json.loads((recovered / "result.json").read_text())["teacher"]["perplexity"] > 0
    assert Path(original_of(run / "keep-0.5")).name == "llama"
    assert original_of(recovered / "model") == original_of(run / "keep-0.5")
    alone = tmp_path / "alone"
    must_run("convert", run / "keep-0.5", "--to", "folder", "--output-dir", alone)
    assert original_of(alone) == ""
    flags = ("--dtype", "float32", "--output-dir", tmp_path / "run")
    done = must_refuse("recover", alone, "--text", "speeches", "--tokens", 128, *flags)
    assert "--teacher: is needed to distil" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()


ORIGINALS = {
    "a name on the hub": ("org/name", "0" * 40, None, "org/name"),
    "a bare name on the hub": ("gpt2", "0" * 40, None, "gpt2"),
    "the embedded model": ("smollm2-135m", "sha256:0", None, "smollm2-135m"),
    "a local folder": ("llama", "sha256:0", {"model": "PLACE/llama"}, "PLACE/llama"),
    "a local folder that is gone": ("llama", "sha256:0", {"model": "PLACE/gone/llama"}, ""),
    "the run of another model": ("llama", "sha256:0", {"model": "PLACE/other"}, ""),
    "something else's config.toml": ("llama", "sha256:0", {"name": "mine"}, ""),
    "a recovery of itself": ("llama", "sha256:0", {"model": "PLACE/run/model"}, ""),
    "a model in memory": ("llama in memory", "sha256:0", {"model": "llama in memory"}, ""),
    "no card": (None, "", None, ""),
}


@pytest.mark.parametrize(
    ("name", "revision", "settings", "found"), ORIGINALS.values(), ids=ORIGINALS
)
def test_original_of(name, revision, settings, found, tmp_path, monkeypatch):
    for folder in ("llama", "other", "run/model"):
        (tmp_path / folder).mkdir(parents=True)
    if name is not None:
        facts = {"source": {"model": name, "revision": revision}}
        monkeypatch.setattr("disp_llm.exporter.exported.read_facts", lambda folder: facts)
    if settings is not None:
        placed = {key: value.replace("PLACE", str(tmp_path)) for key, value in settings.items()}
        (tmp_path / "run" / "config.toml").write_text(tomli_w.dumps(placed))
        if "name" not in settings:
            itself = settings["model"] == "PLACE/run/model"
            mark(tmp_path / "run", "recover" if itself else "prune")
    assert original_of(tmp_path / "run" / "model") == found.replace("PLACE", str(tmp_path))
