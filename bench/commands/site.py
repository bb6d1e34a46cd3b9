"""A static folder for a web host: the Markdown pages as HTML, and a report of all committed results.

It begins at README.md and the pages of docs/ and report/, and follows links. A linked Markdown page is
rendered, any other linked file of the repository is copied, a linked folder with a README.md leads to that,
and pictures become part of the page; nothing outside is touched. Every page has all others beside it, and
one page finds words in the sections of all.
"""

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from bench.compare.comparison import compare
from bench.errors import InfrastructureError, UsageError
from bench.io import make_folder, read_data, write_bytes, write_text
from bench.records.predictions import read_plan
from bench.records.store import gather
from bench.report.html import render_html, render_template

_START, _SEARCH = "index.html", "search.html"
_GROUPS = {"Documentation": Path("docs"), "Results": Path("report")}
_MOST_FOUND = 4000  # letters of a section that can be found
_LONG = 30  # letters of a cell that has some width on a telephone
_COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)
_FOLD = re.compile(r"<details><summary>([^<>&]*)</summary>|</details>")
_PICTURES = {".svg": "image/svg+xml", ".png": "image/png"}
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//|#")


def write_site(root: Path, folder: Path) -> Iterator[str]:
    """Write the site of the repository at ``root``; yield a line on each page, and on each link to nothing.

    Raises UsageError where there are no pages or the folder holds something else already,
    InfrastructureError where it cannot be written.
    """
    root = root.resolve()
    if not (root / "report").is_dir() or not (root / "README.md").is_file():
        raise UsageError(f"{root} has no README.md and report/; run bench report --site in the repository")
    if folder.exists() and any(folder.iterdir()) and not (folder / ".nojekyll").is_file():
        raise UsageError(f"{folder} is not empty and not a site made here; name another folder")
    try:
        make_folder(folder)
        write_text(folder / ".nojekyll", "")  # GitHub Pages shall serve files as they are
        yield from _Site(root, folder).write()
    except OSError as error:
        raise InfrastructureError(
            f"{folder}: cannot write the site ({error.strerror}); choose another place"
        ) from None


@dataclass(frozen=True, kw_only=True)
class Found:
    """A section that can be found: its page and heading, where it is, and what it says."""

    title: str
    href: str
    text: str


class _Site:
    """One pass over the repository: what was found, and what is still to be rendered."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root, self._folder = root, folder
        results = root / "results"
        folders = (*sorted(results.glob("reference/*/")), *sorted(results.glob("studies/*/")))
        self._reports = {source: Path("results") / f"{source.name}.html" for source in folders}
        """Each committed folder of records and each plan, with its place on the site."""
        for plan in sorted(results.glob("predicted/*.json")):
            self._reports[plan] = Path("results") / f"predicted_{plan.stem}.html"
        self._groups = {
            name: sorted((root / inner).glob("*.md"), key=lambda page: (page.name != "README.md", page.name))
            for name, inner in _GROUPS.items()
        }
        self._waiting = [page for pages in self._groups.values() for page in pages] + [root / "README.md"]
        self._done: set[Path] = set()
        self._found: list[Found] = []
        self._problems: list[str] = []

    def write(self) -> Iterator[str]:
        for source, target in self._reports.items():
            home = f"../{_START}"
            if source.is_dir():
                loaded = gather([source])
                text = render_html(compare(loaded.records, loaded.problems), (), home=home)
            else:
                text = render_html(None, [read_plan(source)], home=home)
            yield self._put(target, text)
        while self._waiting:
            page = self._waiting.pop()
            if page not in self._done and page.is_file():
                self._done.add(page)
                yield self._put(self._target(page), self._page(page))
        search = self._rendered("Search", Path(), found=sorted(self._found, key=lambda one: one.title))
        yield self._put(Path(_SEARCH), search)
        yield from self._problems

    def _put(self, target: Path, text: str) -> str:
        path = self._folder / target
        make_folder(path.parent, self._folder)
        write_text(path, text)
        return f"wrote {path}"

    def _target(self, page: Path) -> Path:
        return (
            Path(_START)
            if page == self._root / "README.md"
            else page.relative_to(self._root).with_suffix(".html")
        )

    def _page(self, page: Path) -> str:
        markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
        tokens = _folding(markdown.parse(_COMMENT.sub("", read_data(page).decode())))
        for token in _inline(tokens, "link_open"):
            token.attrSet("href", self._href(str(token.attrGet("href")), page))
        for token in _inline(tokens, "image"):
            token.attrSet("src", self._picture(str(token.attrGet("src")), page))
        title = _title(page)
        for heading, text in _sections(tokens):
            name = f"{title}: {heading.content}" if heading and heading.content != title else title
            href = self._target(page).as_posix() + (f"#{slug(heading.content)}" if heading else "")
            self._found.append(Found(title=name, href=href, text=text[:_MOST_FOUND]))
        shown = markdown.renderer.render(tokens, markdown.options, {})
        # Code that is wider than a telephone is scrolled by keys too.
        body = Markup(shown.replace("<pre>", '<pre tabindex="0">'))  # noqa: S704 - raw HTML is off
        return self._rendered(title, page.parent.relative_to(self._root), page=page, body=body)

    def _rendered(self, title: str, here: Path, *, page: Path | None = None, **content: Any) -> str:
        """Return a page with all others beside it."""
        up = "../" * len(here.parts)
        groups = {
            name: [(_title(one), f"{up}{self._target(one).as_posix()}", one == page) for one in pages]
            for name, pages in self._groups.items()
        }
        groups["Reports to sort and filter"] = [
            (target.stem.replace("_", " "), f"{up}{target.as_posix()}", False)
            for target in self._reports.values()
        ]
        links = {"home": f"{up}{_START}", "search": f"{up}{_SEARCH}"}
        return render_template("prose.html.j2", title=title, groups=groups, **links, **content)

    def _picture(self, link: str, page: Path) -> str:
        """Return a picture of the repository as part of the page, which loads nothing; others stay links."""
        source = (page.parent / unquote(link)).resolve()
        kind = _PICTURES.get(source.suffix)
        if _SCHEME.match(link) or not kind or not source.is_relative_to(self._root) or not source.is_file():
            return link
        return f"data:{kind};base64,{base64.b64encode(read_data(source)).decode()}"

    def _href(self, link: str, page: Path) -> str:
        """Return where a link of a page leads on the site; what is outside the repository stays."""
        if _SCHEME.match(link):
            return link
        path, mark, fragment = link.partition("#")
        source = (page.parent / unquote(path)).resolve()
        if source.is_dir() and source not in self._reports:
            source = source / "README.md"
        if not source.is_relative_to(self._root) or not source.exists():
            self._problems.append(
                f"warning: {page.relative_to(self._root)} links to {link}, which is not there"
            )
            return link
        target = source.relative_to(self._root)
        if source in self._reports:
            target = self._reports[source]
        elif source.suffix == ".md":
            self._waiting.append(source)
            target = self._target(source)
        else:
            copy = self._folder / target
            make_folder(copy.parent, self._folder)
            write_bytes(copy, read_data(source))
        up = "../" * len(page.parent.relative_to(self._root).parts)
        return f"{up}{target.as_posix()}{mark}{fragment}"


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@cache
def _title(page: Path) -> str:
    lines = _COMMENT.sub("", read_data(page).decode()).splitlines()
    return next((line.removeprefix("# ") for line in lines if line.startswith("# ")), page.stem)


def _sections(tokens: list[Token]) -> Iterator[tuple[Token | None, str]]:
    """Yield each heading with the text below it, giving it its anchor; and let columns of numbers be such."""
    heading: Token | None = None
    text: list[str] = []
    for before, token in pairwise([Token("", "", 0), *tokens]):
        if before.type == "heading_open":
            if text:
                yield heading, " ".join(text)
            heading, text = token, []
            before.attrSet("id", slug(token.content))
        elif token.type == "inline":
            text.append(token.content)
        if token.type == "table_open":
            token.attrSet("tabindex", "0")  # that keys scroll it
        if str(token.attrs.pop("style", "")).endswith("right"):
            token.attrSet("class", "number")
        if before.type == "td_open" and len(token.content) > _LONG:
            before.attrSet("class", "long")
    yield heading, " ".join(text)


def _folding(tokens: list[Token]) -> list[Token]:
    """Let a paragraph that begins or ends what is folded be that; no other HTML of a page is let through."""
    kept: list[Token] = []
    for token in tokens:
        if token.type == "paragraph_close" and kept[-1].type == "html_block":
            continue
        if token.type == "inline" and _FOLD.fullmatch(token.content):
            kept[-1] = Token("html_block", "", 0, content=f"{token.content}\n")  # in place of paragraph_open
        else:
            kept.append(token)
    return kept


def _inline(tokens: list[Token], kind: str) -> Iterator[Token]:
    for token in tokens:
        yield from (child for child in token.children or () if child.type == kind)
