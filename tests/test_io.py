"""Files written whole and read without following links, whatever a stranger has planted beside them."""

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

from bench.errors import InfrastructureError, UsageError
from bench.io import read_json, read_plain_file, whole_file, write_json, write_text
from bench.records.published.score import Validation, write_validation
from bench.records.store import write_record
from records_factory import make_record

Write = Callable[[Path], object]
VALIDATION = Validation(versions={}, sources=(), rows=())
WRITERS: dict[str, Write] = {
    "a page": lambda folder: write_text(folder / "baseline.json", "new"),
    "a document": lambda folder: write_json(folder / "baseline.json", VALIDATION),
    "a validation": lambda folder: write_validation(VALIDATION, folder / "baseline.json"),
    "a record": lambda folder: write_record(folder, make_record()),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_no_planted_link_is_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    """A link under the temporary name, were it guessed, is refused; under any other name it is passed by."""
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    victim.write_text("mine")
    folder.mkdir()
    for name in (".baseline.json.tmp", ".baseline.json.old", "baseline.json"):
        (folder / name).symlink_to(victim)
    write(folder)
    assert victim.read_text() == "mine"
    monkeypatch.setattr(secrets, "token_hex", lambda _: "guessed")
    (folder / ".guessed.tmp").symlink_to(victim)
    with pytest.raises(InfrastructureError, match="File exists"):
        write(folder)
    assert victim.read_text() == "mine"


def test_a_link_in_the_place_of_a_page_is_replaced(tmp_path: Path) -> None:
    """What the link leads to keeps its content; the page is a file of its own."""
    victim, page = tmp_path / "victim.txt", tmp_path / "report.md"
    victim.write_text("mine")
    page.symlink_to(victim)
    write_text(page, "the page")
    assert (victim.read_text(), page.read_text(), page.is_symlink()) == ("mine", "the page", False)


def test_an_error_or_an_interrupt_leaves_what_was_there(tmp_path: Path) -> None:
    """The old content stays, and no temporary file."""
    page = tmp_path / "page"
    page.write_text("old")
    with contextlib.suppress(KeyboardInterrupt), whole_file(page) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("page", "old")]


def test_a_device_or_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    """A superuser who writes to /dev/null keeps /dev/null."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("pipe", "link"):
        with pytest.raises(InfrastructureError, match="a device or a pipe is there"):
            write_text(tmp_path / name, "x")
    assert (tmp_path / "pipe").is_fifo()


def test_only_plain_files_of_a_bearable_size_are_read(tmp_path: Path) -> None:
    """A link, a folder, a pipe (which is not waited for) and a large file are each named."""
    plain = tmp_path / "plain"
    plain.write_text("12345")
    (tmp_path / "link").symlink_to(plain)
    os.mkfifo(tmp_path / "pipe")
    assert read_plain_file(plain) == b"12345"
    for other in (tmp_path / "link", tmp_path / "pipe", tmp_path):
        assert read_plain_file(other) == "is a link or not a plain file; only plain files are read"
    assert (
        read_plain_file(plain, most_bytes=4) == "is larger than 4 bytes, which nothing that bench writes is"
    )
    assert read_plain_file(tmp_path / "none") == "cannot be read (No such file or directory)"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read (No such file or directory); make one"),
        ("{", "is not a validation (the file: Invalid JSON"),
        ('{"versions": 1}', "is not a validation (versions: Input should be an object); make one"),
    ],
)
def test_a_document_that_is_none_is_refused_with_what_to_do(
    tmp_path: Path, content: str | None, complaint: str
) -> None:
    """One sentence names the file, what is wrong and where."""
    file = tmp_path / "file.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError) as caught:
        read_json(file, Validation, "a validation", "make one")
    assert str(caught.value).startswith(f"{file} ")
    assert complaint in str(caught.value)


@pytest.mark.parametrize("twice", ['{"one": 1, "one": 2}', '{"many": {"one": 1, "one": 1}}'])
def test_a_name_stands_once_in_an_object(tmp_path: Path, twice: str) -> None:
    """The last of two would silently be taken; numbers that are not JSON's are no reason to refuse."""

    class Small(BaseModel):
        one: int = 0
        many: dict[str, float] = {}

    file = tmp_path / "file.json"
    file.write_text(twice)
    with pytest.raises(UsageError, match=r"is not small \('one' stands twice in one object\); make one"):
        read_json(file, Small, "small", "make one")
    file.write_text('{"many": {"b": 1e3}, "one": 7}')
    assert Small(one=7, many={"b": 1000.0}) == read_json(file, Small, "small", "make one")
