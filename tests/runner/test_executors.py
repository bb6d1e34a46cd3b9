"""Sweeps over several machines: runs at the same time, lost with a machine, on Ray, as SLURM's jobs."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from bench.errors import InfrastructureError, UsageError
from bench.records.environment import read_environment
from bench.records.records import DeviceFacts, Record
from bench.records.store import load_records
from bench.runner.executors import Machine, on_ray
from bench.runner.executors.node import Node, Site, received
from bench.runner.executors.on_ray import RayExecutor
from bench.runner.executors.on_slurm import SlurmExecutor
from bench.runner.schedule import ScheduledRun, SweepOptions
from bench.runner.sweep import _run_all, run_sweep
from bench.scenario.load import load_scenario
from command_lines import CommandLine
from records_factory import make_record
from replay_worker import make_cell
from several_runs import Several

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 1800  # machines that test are busy
FULL = os.environ.get("FAULTS") == "full"
COMMAND = (sys.executable, "-c", "from bench.cli import main; main()", "run")
FACTS = DeviceFacts(cpu_threads=2, cuda_available=False)
SCENARIO = """title = "t"
device = "cpu"
[models.tiny]
random = "tiny-llama-test"
[methods.full]
[methods.lora]
rank = {ranks}
[data]
source = "synthetic"
[training]
micro_batch = 1
sequence_length = 16
[window]
warmup_steps = 1
measured_steps = 2
"""


def test_runs_are_taken_several_at_a_time_and_a_lost_one_once_more() -> None:
    """Each run ends in one record under its own number; one whose machine is lost twice is a crash."""
    cells = [make_cell("ok"), make_cell("ok")]
    planned = [
        ScheduledRun(cell=cell, key=key * 64, run=run)
        for run in (4, 5)
        for cell, key in zip(cells, "ab", strict=True)
    ]
    executor = Several({("a", 5): 1, ("b", 4): 2})
    written: list[Record] = []
    folder: Any = SimpleNamespace(write=written.append)
    there = Machine(read_environment(), FACTS, planned)
    made = _run_all(planned, there, executor, folder, lambda _event: None)
    assert {("a", 4, "ok"), ("a", 5, "ok"), ("b", 4, "crashed"), ("b", 5, "ok")} == {
        (record.key[0], record.run, record.outcome) for record in made
    }
    assert (made, 4, 3) == (written, len(made), executor.most)
    (crashed,) = (record for record in made if record.outcome == "crashed")
    assert "lost" in crashed.failure.message if crashed.failure else False


def test_a_node_that_is_not_like_the_first_is_named_by_what_differs() -> None:
    """Another processor, another version, or other data: in words; a node alike has none."""
    environment = read_environment()
    cell = make_cell("ok")
    first = Machine(environment, FACTS, [ScheduledRun(cell=cell, key="k")])
    other = environment.replace(machine=environment.machine | {"cpu_model": "another"})
    newer = environment.replace(versions=environment.versions | {"torch": "9.9"})
    assert first.unlike(first) == ""
    assert "cpu_model is another there" in first.unlike(Machine(other, FACTS, first.prepared))
    assert "torch is 9.9 there" in first.unlike(Machine(newer, FACTS, first.prepared))
    assert "1 cells" in first.unlike(Machine(environment, FACTS, [ScheduledRun(cell=cell, key="l")]))


def test_a_record_of_another_machine_is_no_measurement_of_this_sweep() -> None:
    """It is kept as not to be had there, under the key that was asked for, without its figures."""
    record = make_record(key="b" * 64)
    run = ScheduledRun(cell=record.cell, key="a" * 64)
    taken = received(run, record)
    assert (taken.key, taken.outcome) == (run.key, "unavailable")
    assert not taken.measurement.steps
    assert received(ScheduledRun(cell=record.cell, key=record.key), record) == record


def test_a_node_needs_the_folder_and_takes_the_drivers_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is not there is a sentence; thread settings of the cluster give way to the driver's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    site = Site.of(SweepOptions(results=tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    Node(site)
    assert (None, "3") == (os.environ.get("OMP_NUM_THREADS"), os.environ["MKL_NUM_THREADS"])
    gone = replace(site, folder=str(tmp_path / "gone"))
    with pytest.raises(UsageError, match="not on every machine"):
        Node(gone)
    with pytest.raises(UsageError, match="--snapshot"):
        Site.of(SweepOptions(results=tmp_path, snapshot=True))


class Ray:
    """Ray as far as an executor asks it for things: nothing is ever ready, and node a has left."""

    def __init__(self, answer: Exception | None = None) -> None:
        from ray import exceptions

        self.exceptions, self.answer, self.killed = exceptions, answer, list[str]()

    def wait(self, references: Sequence[str], **_options: object) -> tuple[list[str], list[str]]:
        return ([*references], []) if self.answer else ([], [*references])

    def get(self, _reference: str, *, timeout: float) -> bytes:
        assert 0 <= timeout < 1000
        assert self.answer
        raise self.answer

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": "a", "Alive": False}, {"NodeID": "b", "Alive": True}]

    def kill(self, actor: str) -> None:
        self.killed.append(actor)


def on_nodes(ray: Ray, *nodes: str) -> tuple[RayExecutor, list[Any]]:
    """Return an executor with a run on the first of these nodes, and what it tells."""
    events: list[Any] = []
    executor = RayExecutor(options=SweepOptions(results=Path()), observe=events.append)
    executor._ray = ray
    begun, *free = (on_ray._Slot(f"actor of {node}", node) for node in nodes)
    executor._free = free
    run = ScheduledRun(cell=make_cell("ok"), key="k" * 64)
    executor._running = {"reference": on_ray._Begun(run, begun, time.monotonic())}
    return executor, events


def test_a_node_that_is_gone_is_not_waited_for_even_where_ray_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its run is given back and its actor ended; without another node the sweep ends in a sentence."""
    monkeypatch.setattr(on_ray, "_NODES_S", -1.0)
    monkeypatch.setattr(on_ray, "_GONE_S", -1.0)
    ray = Ray()
    executor, events = on_nodes(ray, "a", "a", "b")
    ended = executor.next_end()
    assert (None, ["actor of a"], 1) == (ended.record, ray.killed, executor.slots)
    assert "its node has left the cluster" in events[-1].text
    executor, _ = on_nodes(ray, "a", "a")
    with pytest.raises(InfrastructureError, match="the last node of the cluster was lost"):
        executor.next_end()


def test_a_run_of_which_nothing_comes_is_given_up_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though its node is there: after the cell's own limit and what an actor does besides."""
    monkeypatch.setattr(on_ray, "_BESIDE_S", -1e6)
    executor, events = on_nodes(Ray(), "b", "b")
    assert executor.next_end().record is None
    assert "nothing came from its node within" in events[-1].text


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        ("GetTimeoutError", ()),
        ("ObjectLostError", ("0" * 56, "", "")),
        ("ActorDiedError", ()),
        ("OutOfMemoryError", ("why",)),
    ],
)
def test_a_record_that_cannot_be_fetched_was_lost_with_its_node(error: str, arguments: Any) -> None:
    """However Ray calls that: the run is done once more."""
    from ray import exceptions

    ray = Ray(getattr(exceptions, error)(*arguments))
    executor, events = on_nodes(ray, "b", "b")
    assert executor.next_end().record is None
    assert (["actor of b"], 1) == (ray.killed, executor.slots)
    assert events[-1].text.startswith("A node was lost with ")


def test_a_node_that_does_not_look_at_itself_in_time_is_left_out() -> None:
    """Such as one whose GPU another job has: a note, and the sweep goes on without it."""
    from ray import exceptions

    executor, events = on_nodes(Ray(exceptions.GetTimeoutError()), "b")
    assert executor._look("10.0.0.2", "asked", time.monotonic() + 1) is None
    assert "Node 10.0.0.2 is left out: no answer within" in events[-1].text


def facts_of(records: Sequence[Record]) -> dict[tuple[str, int], object]:
    """Return by key and run what two sweeps of the same cells have to agree on exactly."""
    return {
        (one.key, one.run): (one.outcome, one.cell.id, one.measurement.ledger, one.measurement.flops)
        for one in records
    }


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """Return a scenario of three cells."""
    file = tmp_path / "s.toml"
    file.write_text(SCENARIO.format(ranks="[2, 4]"))
    return file


def bench_run(scenario: Path, results: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run ``bench run`` as a user does."""
    command = [*COMMAND, str(scenario), "--results", str(results), *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


class RayCluster:
    """A process that holds two nodes."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "ray_cluster"]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/support'}"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        assert self.process.stdout
        self.address = self.process.stdout.readline().strip()
        assert self.address, "no cluster came up"

    def tell(self, word: str) -> None:
        """Have it kill a node, or end."""
        assert self.process.stdin
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    """Return a running cluster, and end it."""
    made = RayCluster()
    yield made
    made.tell("end")
    made.tell("end")
    made.process.wait(60)
    for pipe in (made.process.stdin, made.process.stdout):
        assert pipe
        pipe.close()


@pytest.mark.alone
@pytest.mark.timeout(3 * PATIENCE_S)
def test_two_nodes_of_ray_make_the_records_that_one_machine_makes(
    scenario: Path, tmp_path: Path, cluster: RayCluster, bench: CommandLine
) -> None:
    """Same keys, ledgers and FLOPs; the same command again does nothing; a killed node loses none."""
    if FULL:
        scenario.write_text(SCENARIO.format(ranks=[*range(2, 25)]))
    here, there = tmp_path / "here", tmp_path / "there"
    by_ray = ("--executor", "ray", "--address", cluster.address)
    first = bench_run(scenario, there, *by_ray)
    assert first.returncode == 0, first.stdout + first.stderr
    assert bench(ROOT, "run", str(scenario), "--results", str(here)).returncode == 0
    local, remote = load_records(here), load_records(there)
    assert local.records
    assert facts_of(local.records) == facts_of(remote.records)

    again = bench_run(scenario, there, *by_ray)
    assert "0 runs to do" in again.stdout + again.stderr

    files = {file: file.read_bytes() for file in there.glob("*--r1.json")}
    more = subprocess.Popen(
        [*COMMAND, str(scenario), "--results", str(there), "--repeats", "3", *by_ray],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert more.stdout
    told = ""
    for line in more.stdout:
        told += line
        if line.startswith("[1/"):
            cluster.tell("kill")
    assert more.wait(PATIENCE_S) == 0, told
    more.stdout.close()
    kept = load_records(there)
    assert not kept.problems
    assert {record.outcome for record in kept.records} == {"ok"}
    assert 3 * len(files) == len(kept.records)
    assert all(file.read_bytes() == content for file, content in files.items())


@pytest.mark.alone
@pytest.mark.timeout(20 * PATIENCE_S)
@pytest.mark.skipif(not FULL, reason="an hour; FAULTS=full")
@pytest.mark.parametrize("victim", ["actor", "driver"])
def test_kills_at_random_instants_lose_no_record(
    scenario: Path, tmp_path: Path, cluster: RayCluster, victim: str
) -> None:
    """Twenty times kill -9 of an actor or of the driver: all ends well, or the next command ends it well."""
    random = Random(7)
    for attempt in range(20):
        results = tmp_path / f"r{attempt}"
        words = [*COMMAND, str(scenario), "--results", str(results), "--executor", "ray"]
        process = subprocess.Popen(
            [*words, "--address", cluster.address],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(random.uniform(2, 20))
        actors = [one for one in psutil.process_iter(["cmdline"]) if is_actor(one)]
        for one in actors[:1] if victim == "actor" else [psutil.Process(process.pid)]:
            one.kill()
        process.wait(PATIENCE_S)
        last = bench_run(scenario, results, "--executor", "ray", "--address", cluster.address)
        assert last.returncode == 0, last.stdout + last.stderr
        kept = load_records(results)
        assert not kept.problems
        assert ["ok"] * 3 == [record.outcome for record in kept.records], attempt
        wait_until_gone()


def is_actor(process: psutil.Process) -> bool:
    """Tell whether a process is an actor of a sweep."""
    return bool(process.info["cmdline"]) and "ray::Node" in process.info["cmdline"][0]


def wait_until_gone() -> None:
    """Insist that actors of sweeps that have ended are gone within ten seconds."""
    deadline = time.monotonic() + 10
    while any(is_actor(one) for one in psutil.process_iter(["cmdline"])):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_no_cluster_and_no_pair_are_mistakes_told_in_a_sentence(scenario: Path, tmp_path: Path) -> None:
    """Nobody answers: exit 4. Options of another executor, and a parameter without a value: exit 2."""
    no_srun = "" if shutil.which("srun") else "srun is not found here; start this where"
    for more, code, said in (
        (("--executor", "ray", "--address", "127.0.0.1:1"), 4, "no Ray cluster answers at 127.0.0.1:1"),
        (("--address", "127.0.0.1:1"), 2, "--address is for --executor ray"),
        (("--executor", "slurm", "--slurm", "timeout_min"), 2, "KEY=VALUE"),
        (("--executor", "slurm", "--slurm", "a_word=5"), 2, f"--executor slurm: {no_srun}"),
    ):
        done = bench_run(scenario, tmp_path / "results", *more)
        assert (code, True) == (done.returncode, said in done.stderr), done.stderr


def test_jobs_of_slurm_make_the_records_that_one_machine_makes(
    scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By submitit's own local executor, in processes of their own; FAULTS=full submits two at once."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cells = load_scenario(scenario).cells[: 2 if FULL else 1]
    options = SweepOptions(results=tmp_path / "there")
    events: list[Any] = []
    jobs = SlurmExecutor(options=options, observe=events.append, cluster="local", poll_s=0.1, slots=2)
    there = run_sweep(cells, options, events.append, executor=jobs)
    here = run_sweep(cells, SweepOptions(results=tmp_path / "here"), events.append)
    assert [record.outcome for record in there.records] == ["ok"] * len(cells)
    assert facts_of(here.records) == facts_of(there.records)
