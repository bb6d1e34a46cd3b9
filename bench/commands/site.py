"""A static folder for a web host: the Markdown pages as HTML, and a report of all committed results.

It begins at the index page and follows links. A linked Markdown page is rendered too, any other linked file
of the repository is copied, a linked folder with a README.md leads to that, pictures become part of the page;
nothing outside is touched.
"""

import base64
import re
from collections.abc import Iterator
from pathlib import Path
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

INDEX = Path("report/README.md")
_COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)
_FOLD = re.compile(r"<details><summary>([^<>&]*)</summary>|</details>")
_PICTURES = {".svg": "image/svg+xml", ".png": "image/png"}
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//|#")


def write_site(root: Path, folder: Path) -> Iterator[str]:
    """Write the site of the repository at ``root``; yield a line on each page.

    Raises UsageError where there is no index page or the folder holds something else already,
    InfrastructureError where it cannot be written.
    """
    root = root.resolve()
    if not (root / INDEX).is_file():
        raise UsageError(f"{root / INDEX} is not there; run bench report --site in the repository")
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
        self._done: set[Path] = set()
        self._waiting = [root / INDEX, root / "README.md"]

    def write(self) -> Iterator[str]:
        for source, target in self._reports.items():
            if source.is_dir():
                loaded = gather([source])
                text = render_html(compare(loaded.records, loaded.problems), ())
            else:
                text = render_html(None, [read_plan(source)])
            yield self._put(target, text)
        while self._waiting:
            page = self._waiting.pop()
            if page not in self._done and page.is_file():
                self._done.add(page)
                yield self._put(page.relative_to(self._root).with_suffix(".html"), self._page(page))
        yield self._put(Path("index.html"), self._index())

    def _put(self, target: Path, text: str) -> str:
        path = self._folder / target
        make_folder(path.parent, self._folder)
        write_text(path, text)
        return f"wrote {path}"

    def _page(self, page: Path, *, at: Path | None = None) -> str:
        """Render a page as it is seen from its own place, or from another folder of the site."""
        markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
        tokens = _folding(markdown.parse(_COMMENT.sub("", read_data(page).decode())))
        here = page.parent.relative_to(self._root) if at is None else at
        for token in _inline(tokens, "link_open"):
            token.attrSet("href", self._href(str(token.attrGet("href")), page, here))
        for token in _inline(tokens, "image"):
            token.attrSet("src", self._picture(str(token.attrGet("src")), page))
        body = Markup(markdown.renderer.render(tokens, markdown.options, {}))  # noqa: S704 - raw HTML is off
        heading = next((each.content for each in tokens if each.type == "inline"), page.stem)
        home = "/".join([*[".."] * len(here.parts), "index.html"])
        return render_template("prose.html.j2", title=heading, body=body, home=home)

    def _index(self) -> str:
        text = self._page(self._root / INDEX, at=Path())
        links = "".join(
            str(Markup('<li><a href="{}">{}</a></li>').format(target.as_posix(), target.stem))
            for target in self._reports.values()
        )
        listed = f"<h2>Reports to sort and filter</h2>\n<ul>{links}</ul>\n</article>"
        return text.replace("</article>", listed, 1)

    def _picture(self, link: str, page: Path) -> str:
        """Return a picture of the repository as part of the page, which loads nothing; others stay links."""
        source = (page.parent / unquote(link)).resolve()
        kind = _PICTURES.get(source.suffix)
        if _SCHEME.match(link) or not kind or not source.is_relative_to(self._root) or not source.is_file():
            return link
        return f"data:{kind};base64,{base64.b64encode(read_data(source)).decode()}"

    def _href(self, link: str, page: Path, here: Path) -> str:
        """Return where a link of a page leads on the site; what is outside the repository stays."""
        if _SCHEME.match(link):
            return link
        path, mark, fragment = link.partition("#")
        source = (page.parent / unquote(path)).resolve()
        if source.is_dir() and source not in self._reports:
            source = source / "README.md"
        if not source.is_relative_to(self._root) or not source.exists():
            return link
        target = source.relative_to(self._root)
        if source in self._reports:
            target = self._reports[source]
        elif source.suffix == ".md":
            self._waiting.append(source)
            target = target.with_suffix(".html")
        else:
            copy = self._folder / target
            make_folder(copy.parent, self._folder)
            write_bytes(copy, read_data(source))
        return "/".join([*[".."] * len(here.parts), *target.parts]) + mark + fragment


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
