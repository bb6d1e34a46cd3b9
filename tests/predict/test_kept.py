"""Predictions are kept and read back: when they are, when not, and what a damaged or planted file does."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from bench.gate.protocol import PlanAssignment
from bench.gate.serve import planned_for
from bench.predict import kept
from bench.predict.kept import Kept
from bench.predict.plan import PlanRequest, chosen_cards, plan_before_sweep, plan_scenario
from bench.predict.pool import PredictionRequest
from bench.records.messages import Job, Send
from bench.records.predictions import Prediction, Refusal, plan_json
from bench.scenario.platform import Platform
from replay_worker import PLANNED, Counted, make_cell, make_facts, replay

AMPERE = Platform(capability=(8, 0))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache of the test's own; one small package stands for the libraries."""
    libraries = tmp_path / "libraries"
    (libraries / "traced").mkdir(parents=True)
    (libraries / "traced" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(libraries)
    monkeypatch.setattr(kept, "_TRACED", ("traced",))
    monkeypatch.setattr(Kept, "at_first", "")
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "predictions"


def request(
    batch: int = 1, behaviour: str = "ok", platform: Platform = AMPERE, **parts: object
) -> PredictionRequest:
    """Return the request for a replay cell: a GiB for each sequence of its batch."""
    training = {"sequence_length": 256, "micro_batch": batch}
    model = {"name": "tiny", "random": "tiny-llama-test"}
    cell = make_cell(behaviour, **{"model": model, "training": training, **parts})
    return PredictionRequest(cell=cell, platform=platform)


def predicted(*requests: PredictionRequest, fresh: bool = False, allocator: str = "") -> int:
    """Ask anew, as another process would; return how many cells workers predicted."""
    Kept.at_first = ""
    launcher, again = Counted(), Kept(fresh=fresh)
    answers = again.predict(requests, launcher, allocator=allocator)
    assert len(answers) == len(requests)
    assert (again.asked, again.found) == (len(requests), len(requests) - launcher.cells)
    return launcher.cells


def test_a_second_plan_starts_no_worker_and_is_the_first(tmp_path: Path) -> None:
    """Byte for byte, refusals and advice included; the device is not asked for again either."""
    (tmp_path / "s.toml").write_text(PLANNED.format(device="cuda", batches="[1, 2]"))

    def plan(*, fresh: bool = False, advice: bool = True) -> tuple[str, Kept, int]:
        launcher, answers = Counted(), Kept(fresh=fresh)
        request = PlanRequest(kept=answers, advice=advice)
        found = plan_scenario(tmp_path / "s.toml", None, request, lambda *_: None, launcher)
        return plan_json(found), answers, launcher.launches

    first, answers, launches = plan()
    assert (launches > 1, answers.found, answers.told) == (True, 0, "")
    second, answers, launches = plan()
    assert (second, launches) == (first, 0)
    assert (
        answers.told
        == f"answers kept from earlier: {answers.asked} of {answers.asked}; --fresh predicts anew"
    )
    third, answers, launches = plan(fresh=True)
    assert (third, answers.told, launches > 1) == (first, "", True)


def test_a_sweep_that_resumes_reads_back_what_it_predicted_before() -> None:
    """No worker predicts a cell again, and the plan before the runs is the same."""
    cells = [request(batch).cell for batch in (1, 2)]
    first, second = Counted(), Counted()
    plan = plan_before_sweep(cells, make_facts(), first)
    assert plan_before_sweep(cells, make_facts(), second) == plan
    assert (first.cells, second.cells) == (2, 0)


def test_a_plan_that_shares_cells_with_another_predicts_the_others() -> None:
    """Whatever a cell is called, and in whichever order it comes."""
    assert predicted(request(1), request(2)) == 2
    assert predicted(request(3), request(2, id="other"), request(1)) == 1
    assert predicted(request(2), request(1), fresh=True) == 2


@pytest.mark.parametrize(
    "other",
    [
        request(2),
        request(1, model={"name": "tiny", "random": "tiny-gemma3-test"}),
        request(1, data={"source": "synthetic", "lengths": "vary"}, evaluation={}),
        request(1, window={"warmup_steps": 3}),
        request(1, platform=Platform(capability=(9, 0))),
        request(1, platform=Platform(torch="2.6")),
        PredictionRequest(cell=request(1).cell, platform=AMPERE, cards=chosen_cards(["rtx4090"], [])),
    ],
    ids=["batch", "model", "data", "window", "capability", "version", "cards"],
)
def test_another_question_is_predicted(other: PredictionRequest) -> None:
    """Of cell, platform and cards each field counts."""
    assert predicted(request(1)) == 1
    assert predicted(other) == 1
    assert predicted(request(1)) == 0


def test_allocator_settings_are_part_of_the_question() -> None:
    """As cards of the same name with other figures are."""
    card = chosen_cards(["rtx4090"], [])[0]
    assert predicted(request(1), allocator="expandable_segments:True") == 1
    assert predicted(request(1)) == 1
    for known in (card, card.model_copy(update={"peak_bf16_flops": 1.0})):
        assert predicted(PredictionRequest(cell=request(1).cell, platform=AMPERE, cards=(known,))) == 1


def _edit_a_source(libraries: Path, _: pytest.MonkeyPatch) -> None:
    source = libraries / "traced" / "__init__.py"
    facts = source.stat()
    source.write_text("\n")
    os.utime(source, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def _touch_a_source(libraries: Path, _: pytest.MonkeyPatch) -> None:
    os.utime(libraries / "traced" / "__init__.py", ns=(1, 1))


def _add_constants(libraries: Path, _: pytest.MonkeyPatch) -> None:
    (libraries / "traced" / "speed").mkdir()
    (libraries / "traced" / "speed" / "constants.toml").write_text("band = 1.3")


def _install(libraries: Path, _: pytest.MonkeyPatch) -> None:
    (libraries / "causal_conv1d-1.0.dist-info").mkdir()


def _set_a_variable(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("TRANSFORMERS_VERBOSITY", "error")


def _start_as_a_rank(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("RANK", "1")


def _choose_kernels_of_the_cpu(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("ATEN_CPU_CAPABILITY", "default")


def _move_to_another_processor(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(kept, "cpu_model", lambda: "another")


def _lose_a_core(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(kept, "cores", lambda: 99)


def _lay_over(libraries: Path, patch: pytest.MonkeyPatch) -> None:
    (libraries / "over" / "traced").mkdir(parents=True)
    (libraries / "over" / "traced" / "__init__.py").write_text("")
    patch.syspath_prepend(libraries / "over")


@pytest.mark.parametrize(
    "change",
    [
        _edit_a_source,
        _touch_a_source,
        _add_constants,
        _install,
        _set_a_variable,
        _start_as_a_rank,
        _choose_kernels_of_the_cpu,
        _move_to_another_processor,
        _lose_a_core,
        _lay_over,
    ],
)
def test_what_is_around_is_part_of_the_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path, pytest.MonkeyPatch], None]
) -> None:
    """Sources of bench and of what it traces, what is installed, and how it is set up."""
    assert predicted(request(1)) == 1
    change(tmp_path / "libraries", monkeypatch)
    importlib.invalidate_caches()
    assert predicted(request(1)) == 1
    assert predicted(request(1)) == 0


@pytest.mark.parametrize("file", ["model/config.json", "rows.jsonl", "cache/machines/card.json"])
def test_files_that_a_prediction_reads_are_part_of_the_question(tmp_path: Path, file: str) -> None:
    """A model's folder, the rows whose tokens are looked at, and for the CPU the machine's card."""
    (tmp_path / "model").mkdir()
    (tmp_path / "cache" / "machines").mkdir(parents=True)
    asked = request(
        1,
        platform=Platform(device="cpu"),
        model={"name": "mine", "path": "model"},
        data={"source": "jsonl", "path": "rows.jsonl"},
        evaluation={},
    )
    (tmp_path / file).write_text("{}")
    assert predicted(asked) == 1
    assert predicted(asked) == 0
    (tmp_path / file).write_text('{"other": 1}')
    assert predicted(asked) == 1


def test_a_file_of_the_same_size_and_time_is_another(tmp_path: Path) -> None:
    """As an archive or a copy that keeps times leaves it."""
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "config.json"
    asked = request(1, model={"name": "mine", "path": "model"})
    for layers in (4, 8):
        file.write_text(f'{{"num_hidden_layers": {layers}}}')
        os.utime(file, ns=(1, 1))
        assert predicted(asked) == 1
    assert predicted(asked) == 0


@pytest.mark.parametrize("of", ["model", "libraries/traced"])
def test_nothing_is_kept_of_what_a_link_to_a_folder_holds(tmp_path: Path, of: str) -> None:
    """Neither of a model's code nor of a library's."""
    (tmp_path / "model").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / of / "layers").symlink_to(tmp_path / "elsewhere")
    asked = request(1, model={"name": "mine", "path": "model"})
    assert [predicted(asked) for _ in range(2)] == [1, 1]


def test_what_changed_while_a_process_runs_is_neither_kept_nor_read(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """Its workers go by what was there when the first of them started."""
    assert predicted(request(1)) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    for asked in (request(1), request(2)):
        launcher = Counted()
        Kept().predict([asked], launcher)
        assert (launcher.cells, len(list(cache.iterdir()))) == (1, 1)


def test_a_branch_on_the_hub_is_asked_for_each_time_unless_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It moves, and a commit does not."""
    commit = "a" * 40
    repository = tmp_path / "hub" / "models--nobody--nothing"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    branch, fixed = (
        request(1, model={"name": "m", "hub": "nobody/nothing", "revision": revision})
        for revision in ("main", commit)
    )
    assert [predicted(branch) for _ in range(2)] == [1, 1]
    assert [predicted(fixed) for _ in range(2)] == [1, 0]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert [predicted(branch) for _ in range(2)] == [1, 0]


def test_a_card_that_was_divided_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of it has less memory."""
    monkeypatch.setattr(kept, "_SLICES", tmp_path / "capabilities")
    launcher = Counted()
    for folder in ("gpu0", "gpu0", "gpu0/mig/gi7"):
        (tmp_path / "capabilities" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "capabilities" / folder / "access").touch()
        Kept.at_first = ""
        Kept().device(launcher)
    assert launcher.launches == 2


def test_a_model_that_would_be_fetched_is_asked_for_each_time() -> None:
    """What is on the hub then is not known before; a catalogued one is fetched by nobody."""
    unknown, known = ({"name": "m", "hub": hub} for hub in ("nobody/nothing", "huggyllama/llama-7b"))
    assert [predicted(request(1, model=unknown)) for _ in range(2)] == [1, 1]
    assert [predicted(request(1, model=known)) for _ in range(2)] == [1, 0]


def test_what_other_workers_say_is_not_taken_for_an_answer() -> None:
    """Replayed answers are no predictions."""
    assert predicted(request(1)) == 1
    launcher = Counted(_replay_otherwise)
    Kept().predict([request(1)], launcher)
    assert launcher.cells == 1


def _replay_otherwise(job: Job, send: Send) -> None:
    replay(job, send)


def test_a_failure_of_the_worker_is_not_kept() -> None:
    """It may go well the next time; what the tracer refuses it will refuse again."""
    assert [predicted(request(1, "sigkill")) for _ in range(2)] == [1, 1]
    assert [predicted(request(1, "refused")) for _ in range(2)] == [1, 0]


def test_a_library_that_fails_is_asked_again(cache: Path) -> None:
    """Memory may have been short."""
    kept._write("a" * 64, answer=Refusal(message="peft fails", by="library"))
    assert not cache.exists()


def test_ranges_that_are_lent_are_kept_for_the_same_plan_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a large plan an answer depends on the other cells."""
    monkeypatch.setattr(kept, "RANGES_REPLAYED", 1)
    assert predicted(request(1), request(2)) == 2
    assert predicted(request(1), request(2)) == 0
    assert predicted(request(1), request(2), request(3)) == 3
    assert predicted(request(1)) == 1


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\x00" * 100, b'{"asked": "x"}', b"[" * 100_000, b"other", b"more"]
)
def test_a_damaged_or_foreign_file_is_replaced(cache: Path, content: bytes) -> None:
    """It is data: validated, for this question, plain and of a size; else it is as if it were not there."""
    assert predicted(request(1), request(2)) == 2
    mine, other = sorted(cache.iterdir())
    content = other.read_bytes() if content == b"other" else content
    content = (
        mine.read_bytes().replace(b'"asked"', b'"run":"os.system", "asked"')
        if content == b"more"
        else content
    )
    mine.write_bytes(content)
    assert predicted(request(1), request(2)) == 1
    assert predicted(request(1), request(2)) == 0


def test_a_link_is_not_followed(cache: Path, tmp_path: Path) -> None:
    """Neither when read nor when written."""
    assert predicted(request(1)) == 1
    (file,) = cache.iterdir()
    target = tmp_path / "elsewhere.json"
    file.rename(target)
    file.symlink_to(target)
    before = target.read_bytes()
    assert predicted(request(1)) == 1
    assert (file.is_symlink(), target.read_bytes()) == (False, before)


def test_a_cache_that_cannot_be_written_to_costs_nothing_but_time(cache: Path) -> None:
    """Answers are as ever."""
    cache.parent.mkdir()
    cache.write_text("no folder")
    assert [predicted(request(1)) for _ in range(2)] == [1, 1]


def test_the_oldest_answers_are_dropped(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By number, and by bytes."""
    for batch in range(1, 5):
        assert predicted(request(batch)) == 1
        for file in cache.iterdir():
            os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns - 10**9))
    monkeypatch.setattr(kept, "MOST_ANSWERS", 4)
    assert predicted(request(5)) == 1
    assert len(list(cache.iterdir())) == 3
    assert [predicted(request(batch)) for batch in (5, 4, 3)] == [0, 0, 0]
    monkeypatch.setattr(kept, "MOST_KEPT_BYTES", 100)
    assert predicted(request(1)) == 1
    assert list(cache.iterdir()) == []


def test_a_side_of_a_gate_keeps_nothing(cache: Path) -> None:
    """Its libraries may be a checkout or lie over others: neither side ever has an answer of the other."""
    cells = tuple(request(batch).cell.model_dump_json() for batch in (1, 2))
    asked = PlanAssignment(scenario="example", title="", cells_json=cells, cards=(), allocator="")
    for _ in range(2):
        launcher = Counted()
        plan = planned_for(asked, launcher, "", lambda _: None)
        assert (len(plan.cells), launcher.cells) == (2, 2)
    assert not cache.exists()


def test_answers_are_what_was_predicted() -> None:
    """Each its own."""
    first, second = (Kept().predict([request(2), request(1)], Counted()) for _ in range(2))
    assert first == second
    assert all(isinstance(one, Prediction) for one in second)
    assert first[0] != first[1]
