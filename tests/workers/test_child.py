"""What a worker runs for its job comes from one closed table."""

import sys
from importlib import import_module
from typing import get_args

import pytest

from bench.errors import UnavailableError
from bench.records.messages import Job, ProbeJob
from bench.workers import child


def test_every_kind_of_job_has_an_entry_point_that_exists() -> None:
    """The table names a function for each kind of job, and nothing else."""
    assert set(child.ENTRY_POINTS) == set(get_args(get_args(Job)[0]))
    for name in child.ENTRY_POINTS.values():
        module, _, function = name.partition(":")
        assert callable(getattr(import_module(module), function))


def test_a_job_that_is_not_in_the_table_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message cannot name what is run for it."""
    monkeypatch.setattr(child, "ENTRY_POINTS", {})
    with pytest.raises(KeyError):
        child.do_job(ProbeJob(), lambda _: None)


def test_a_library_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what does the job, and for what a probe is to try."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UnavailableError, match=r"cannot be imported here .*bitsandbytes"):
        child.do_job(ProbeJob(imports=("bitsandbytes",)), lambda _: None)
    monkeypatch.setattr(child, "ENTRY_POINTS", {ProbeJob: "bitsandbytes:run_job"})
    with pytest.raises(UnavailableError, match="cannot be imported here"):
        child.do_job(ProbeJob(), lambda _: None)
