"""Names in place of paths: what is told of a run says nothing about the machine that it ran on."""

import pytest

from disp_lab.reporting.tables import without_paths
from disp_llm.cli import parsing
from disp_llm.config.names import name_of


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder of the form of a name on the hub, and a file below it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "llama").mkdir(parents=True)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        (
            "Salesforce/wikitext:wikitext-2-raw-v1:test",
            "Salesforce/wikitext:wikitext-2-raw-v1:test",
        ),
        ("smollm2-135m", "smollm2-135m"),
        ("models/llama", "llama"),  # it lies here
        ("./models/other", "other"),
        ("../secret", "secret"),
        ("~/llama", "llama"),
        ("/home/alice/llama", "llama"),
        ("/home/alice/my models/llama/", "llama"),
        ("a/b/c", "c"),
        ("llama in memory", "llama in memory"),
        ("", ""),
        ("/", "/"),
    ],
)
def test_a_path_is_its_last_part_and_a_name_on_the_hub_stays(place, name):
    assert name_of(place) == name


def test_messages():
    message = (
        "output_dir: /home/alice/run is in use ('/home/bob/x y'); see https://a.org/b or and/or"
    )
    assert without_paths(message) == (
        "output_dir: run is in use ('x y'); see https://a.org/b or and/or"
    )


def test_the_stored_command_names_no_folders(monkeypatch):
    words = ["/opt/venv/bin/disp-llm", "prune", "models/llama", "--text=x/a b.txt", "org/name"]
    monkeypatch.setattr("sys.argv", words)
    assert parsing.command_line() == "disp-llm prune llama '--text=a b.txt' org/name"
