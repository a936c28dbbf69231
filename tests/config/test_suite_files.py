"""What a suite may say; everything else is refused in one line."""

from pathlib import Path

import pytest

from disp_llm.config.errors import InputError
from disp_llm.config.names import GENERAL
from disp_llm.config.recipes import recipe_names
from disp_llm.config.texts import load_mixture, load_suite, suite_names

ROOT = Path(__file__).parents[2]

TEXT = "[texts.A]\nfiles = ['a.txt']\n"
TASK = "[tasks.arc_easy]\nchance = 0.25\n"


@pytest.fixture
def written(tmp_path):
    (tmp_path / "a.txt").write_text("some words")

    def write(content: str) -> str:
        (tmp_path / "mine.toml").write_text(content)
        return str(tmp_path / "mine.toml")

    return write


def test_files_lie_beside_the_suite_or_where_variables_say(written, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "q.jsonl").write_text("{}")
    monkeypatch.setenv("ELSEWHERE", str(elsewhere))
    suite = load_suite(written(TEXT + TASK + "data = '${ELSEWHERE}/q.jsonl'\nlimit = 7"))
    assert suite.name == "mine"
    assert suite.texts["A"].files == (tmp_path / "a.txt",)
    task = suite.tasks["arc_easy"]
    assert (task.data, task.limit, task.metric) == (elsewhere / "q.jsonl", 7, "acc_norm")
    assert task.shots is None
    assert (suite.evaluation.context, suite.evaluation.windows) == (1024, 16)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("title = 'x'", "names no texts and no tasks"),
        ("title = ", "cannot read"),
        (TEXT + "[text.B]", r"unknown key 'text' \(nearest: texts\)"),
        (TEXT + "colum = 'x'", "unknown key 'texts.A.colum'"),
        (TASK + "metrics = 'acc'", r"unknown key 'tasks.arc_easy.metrics' \(nearest: metric\)"),
        ("texts = 3", "texts: expected object, got int"),
        ("[texts]\nA = 'a.txt'", r"texts\S*: expected object, got str"),
        ("[texts.A]\nfiles = []", "name either files or a dataset"),
        (TEXT + "dataset = 'x'", "name either files or a dataset"),
        (TEXT + "rows = 3", "rows are those of a dataset"),
        ("[texts.A]\nfiles = ['a.txt', 'a.txt']\nsha256 = 'x'", "sha256 is that of one file"),
        ("[texts.A]\nfiles = 'a.txt'", "expected array, got str"),
        ("[texts.A]\nfiles = ['gone.txt']", r"texts\S*files\S*: there is no .*gone.txt"),
        ("[texts.A]\nfiles = ['$NO_SUCH/a']", "variable NO_SUCH is not set"),
        ("[texts.A]\nfiles = ['a$']", "nvalid placeholder"),
        ("[tasks.arc_easy]\nlimit = 3", "missing required field chance"),
        ("[tasks.x]\nchance = 1", "expected float < 1"),
        ("[tasks.x]\nchance = -0.1", "expected float >= 0"),
        ("[tasks.x]\nchance = nan", "chance"),
        ("[tasks.x]\nchance = 0.5\nmetric = 'f1'", "invalid enum value 'f1'"),
        (TASK + "data = 'gone.jsonl'", r"tasks\S*data: there is no .*gone.jsonl"),
        (TASK + "limit = -1", "expected int >= 0"),
        (TASK + "shots = -1", "shots: expected int >= 0"),
        (TASK + "shots = '5'", "shots: expected int"),
        (TEXT + "shots = 5", "unknown key 'texts.A.shots'"),
        ("shots = 5\n" + TEXT, "unknown key 'shots'"),
        ("context = 1\n" + TEXT, "context: expected int >= 2"),
        ("windows = 1.5\n" + TEXT, "windows: expected int, got float"),
    ],
)
def test_mistakes(written, content, said):
    with pytest.raises(InputError, match=said) as caught:
        load_suite(written(content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["generl", "gone.toml", "."])
def test_no_such_suite(name):
    with pytest.raises(InputError, match=r"no suite 'generl' \(nearest: general\)|gone.toml|'\.'"):
        load_suite(name)


def test_shipped_suites_are_no_recipes():
    assert suite_names() == ["commonsense", "general"]
    assert not set(suite_names()) & set(recipe_names())
    for name in suite_names():
        shipped = load_suite(name)
        assert not any(text.files for text in shipped.texts.values())  # for who has a network
        assert not any(task.data for task in shipped.tasks.values())
        assert shipped.name == name


def test_the_text_of_commonsense_is_that_of_general():
    general, commonsense = load_suite("general"), load_suite("commonsense")
    assert commonsense.texts == {"WikiText-2": general.texts["WikiText-2"]}
    assert commonsense.evaluation == general.evaluation


def test_what_the_shipped_mixture_teaches_is_not_in_the_shipped_suite():
    suite, mixture = load_suite("general"), load_mixture(Path(GENERAL))
    measured, taught = ({text.dataset for text in of.texts.values()} for of in (suite, mixture))
    assert len(measured) == 4
    assert len(taught) == 8
    assert not measured & taught


def test_local_suite(tmp_path, monkeypatch):
    for name in ("C4", "GENERAL", "WIKITEXT", "HELLASWAG", "ARC_EASY"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in (
        "llmshearing_c4-rp2.jsonl code.txt multilingual.txt technical.txt wiki.test.raw "
        "validation-2000.jsonl test.jsonl"
    ).split():
        (tmp_path / name).write_text("x")
    suite = load_suite(str(ROOT / "experiments" / "suites" / "general.toml"))
    assert len(suite.texts) == 5
    assert suite.tasks.keys() == {"hellaswag", "arc_easy"}
