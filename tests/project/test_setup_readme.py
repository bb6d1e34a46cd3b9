"""The README's commands exist and its links lead somewhere."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from bench.cli import app
from bench.scenario.load import load_scenario

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_command_is_in_the_readme_and_none_that_is_not() -> None:
    """The list of commands is complete and true."""
    there = set(getattr(get_command(app), "commands"))  # noqa: B009 - typer's type does not show it
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    code = "\n".join(re.findall(r"`[^`]+`|^    .*", prose, re.MULTILINE))
    assert there == set(re.findall(r"\bbench ([a-z]+)\b", code))


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "results/README.md",
        *(
            f"{folder}/{page.name}"
            for folder in ("docs", "report")
            for page in sorted((ROOT / folder).glob("*.md"))
        ),
    ],
)
def test_links_between_pages_lead_to_files(page: str) -> None:
    """A relative link names a file of the repository."""
    path = ROOT / page
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "report/gate.md"])
def test_tests_that_a_page_names_exist(page: str) -> None:
    """A command that runs a test, or a script beside the tests, has its path."""
    named = re.findall(r"\btests/[\w/]+\.py\b", (ROOT / page).read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_every_dependency_is_justified() -> None:
    """CONTRIBUTING.md says in a line why each is here."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    names = re.findall(r'^  "([a-z0-9-]+)>=', project, re.MULTILINE)
    assert names
    assert [name for name in names if f"`{name}`" not in CONTRIBUTING] == []


def test_the_scenario_in_the_docs_loads(tmp_path: Path) -> None:
    """The example makes the nine cells it says, under the id it names."""
    page = (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8")
    example = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0]
    path = tmp_path / "example.toml"
    path.write_text(example, encoding="utf-8")
    ids = [cell.id for cell in load_scenario(path).cells]
    assert len(ids) == 9
    assert "mistral-7b/lora-r8/b1-s512-ckpt" in ids


def test_the_readme_is_short() -> None:
    """What is longer has a page under docs/."""
    assert len(README.splitlines()) <= 160


def test_paths_named_for_contributors_exist() -> None:
    """CONTRIBUTING.md names files and folders that are there."""
    named = re.findall(r"\b((?:tests|bench|scenarios)/[\w./]*\w)", CONTRIBUTING)
    assert [path for path in named if not (ROOT / path).exists()] == []
