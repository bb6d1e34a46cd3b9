"""What a predicted script writes does not reach the user's files."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os, shutil, sys
from pathlib import Path
from bench.predict.script.folder import working_in_links
with working_in_links(Path(sys.argv[1])):
    assert open("log.txt").read() == "mine"
    open("log.txt", "a").write(" and more")
    assert Path("log.txt").read_text() == "mine and more"
    Path("out/deep/new.txt").write_text("new")
    assert Path("out/deep/old.txt").read_text() == "old"
    Path("out/old.txt").write_text("changed")
    os.remove("gone.txt")
    os.rename("out/moved.txt", "out/elsewhere.txt")
    shutil.rmtree("thrown")
    os.makedirs("fresh/folder")
    os.chdir("data")
    Path("rows.txt").write_text("changed")
    Path("../../beside.txt").write_text("changed")
"""


def test_files_of_the_user_are_read_and_stay_as_they_are(tmp_path: Path) -> None:
    """Appended to, replaced, moved, removed and thrown away as a script does, in folders that exist too."""
    here = tmp_path / "above" / "here"
    for name in ("log.txt", "out/old.txt", "out/deep/old.txt", "out/moved.txt", "gone.txt"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("mine" if name == "log.txt" else "old")
    for name in ("thrown/old.txt", "data/rows.txt", "../beside.txt"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("old")
    before = {path: path.is_file() and path.read_text() for path in sorted(tmp_path.rglob("*"))}
    links = tmp_path.parent / f"{tmp_path.name}-links"
    links.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(links)], check=False, cwd=here, capture_output=True, text=True
    )
    assert (0, "") == (done.returncode, done.stderr)
    assert before == {path: path.is_file() and path.read_text() for path in sorted(tmp_path.rglob("*"))}
    assert (links.joinpath(*here.parts[1:]) / "out" / "deep" / "new.txt").read_text() == "new"
