"""tools/check_prose.py: small files in, findings out."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def check_prose():
    spec = importlib.util.spec_from_file_location("check_prose", ROOT / "tools" / "check_prose.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def found(check_prose, tmp_path):
    """Findings for one file, in a repository that has a page, a module and a test: [(line, message)]."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "guide.md").write_text("# Guide\n\n## The app file: `app`\n")
    for folder, text in {"fedmq": "", "coordinator": "", "tests": ""}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text(text)
    (tmp_path / "fedmq" / "coordinator").symlink_to("../coordinator")
    (tmp_path / "coordinator" / "core.py").write_text("class Core: ...\n")
    (tmp_path / "tests" / "test_core.py").write_text("def test_it_decides_when_asked():\n    ...\n")
    return lambda name, text: list(check_prose.findings(tmp_path / name, text, tmp_path))


@pytest.mark.parametrize("opening", ["Of the open one.", "whether it is open.", "\n    As before.", "If open."])
def test_a_weak_opening_is_found_in_a_docstring_of_every_kind(found, opening):
    text = f'"""{opening}"""\n\n\nclass Round:\n    """{opening}"""\n\n    deadline = 1\n    """{opening}"""\n'
    lines = [line for line, message in found("round.py", text) if "begin with a verb" in message]
    assert len(lines) == 3


def test_a_verb_a_noun_a_code_word_and_a_string_that_is_a_value_are_no_weak_openings(found):
    text = '"""Return it."""\n\nname = """What is it?"""\n"""Name of it."""\n"""`of` it."""\n"""Office hours."""\n'
    assert found("round.py", text) == []


@pytest.mark.parametrize("name", ["a.py", "a.md", "a.toml", "a.sh"])
def test_a_line_over_120_characters_is_found_and_one_of_120_is_not(found, name):
    ((line, message),) = found(name, f"# {'a' * 118}\n# b {'a' * 117}\n")
    assert line == 2
    assert "121 characters" in message


def test_tables_output_and_words_that_cannot_be_wrapped_may_be_longer_but_code_may_not(found):
    long = "a " * 70
    text = f"| {'a' * 140} | b |\n\n```\n{long}\n```\n\n- [a]({'a' * 130}:b)\n"
    assert [message for _, message in found("a.md", text) if "characters" in message] == []
    assert [line for line, message in found("a.md", f"```python\n# {long}\n```\n") if "characters" in message] == [2]


def test_a_cell_of_more_than_25_words_is_found(found):
    assert found("a.md", f"| key | {'word ' * 25}|\n") == []
    ((line, message),) = found("a.md", f"| key | {'word ' * 26}|\n")
    assert (line, "26 words" in message) == (1, True)


@pytest.mark.parametrize(
    "target", ["docs/guide.md", "docs/guide.md#guide", "docs/guide.md#the-app-file-app", "#here", "http://x/"]
)
def test_a_link_that_leads_somewhere_passes(found, target):
    assert found("a.md", f"# Here\n\n[it]({target})\n") == []


@pytest.mark.parametrize("target", ["docs/gone.png", "docs/guide.md#gone", "#gone"])
def test_a_dead_link_is_found(found, target):
    ((line, message),) = found("a.md", f"# Here\n\n[it]({target})\n")
    assert line == 3
    assert target[target.rfind("#") + 1 :] in message


@pytest.mark.parametrize(
    "name",
    [
        "coordinator/core.py", "fedmq/coordinator/core.py", "fedmq.coordinator.core", "fedmq.coordinator.core.Core",
        "tests/test_core.py", "test_core.py", "test_it_decides_when_asked", "test_it_…", "…_when_asked",
        "fedmq.updates", "fedmq.participant.sensor-1", "run.stop", "coordinator.url", "test_part",
    ],
)  # fmt: skip
def test_a_name_that_is_in_the_repository_or_is_no_name_of_its_files_passes(found, name):
    assert found("a.md", f"See `{name}`.\n") == []


@pytest.mark.parametrize(
    "name",
    [
        "coordinator/gone.py", "fedmq.coordinator.gone", "fedmq.coordinator.core.Gone", "coordinator.core.Core",
        "test_gone.py", "unit/test_core.py", "test_it_is_gone", "test_it_…_gone", "…_is_gone",
    ],
)  # fmt: skip
def test_a_name_that_is_gone_is_found(found, name):
    ((_, message),) = found("a.md", f"See `{name}`.\n")
    assert name in message


def test_a_page_that_is_not_in_the_repository_is_not_cited(found):
    gone = "design" + ".md"
    assert ["cites" in message for _, message in found("a.py", f'"""Decide (guide.md and {gone})."""\n')] == [True]


@pytest.mark.parametrize("host", ["pypi." + "org", "files.pythonhosted." + "org", "a.artifact" + "ory.example.com"])
def test_a_registrys_host_is_found(found, host):
    ((_, message),) = found("a.toml", f'index = "https://{host}/simple"\n')
    assert "registry" in message


@pytest.mark.parametrize("path", ["/home" + "/me/run", "/work" + "/main", "/tmp" + "/x"])
def test_a_path_of_one_machine_is_found(found, path):
    ((_, message),) = found("a.sh", f"cd {path}\n")
    assert path.split("/")[1] in message


def test_findings_are_printed_with_file_and_line_and_the_exit_status_says_that_there_are_some(
    check_prose, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("good.py").write_text('"""Return it."""\n')
    Path("bad.py").write_text('"""Return it."""\n\nx = 1\n"""Of it."""\n')
    assert check_prose.main(["good.py"]) == 0
    assert check_prose.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith("bad.py:4: a docstring begins with 'Of'; ")
