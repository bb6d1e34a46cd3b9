"""What ``bench doctor`` finds, with a replayed probe in the place of a real one."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.io import cache_folder
from bench.records.messages import Job, ReadingMade, Send
from bench.runner.doctor import Finding, examine
from bench.workers.launch import Launcher
from replay_worker import make_facts, replay

CARD = {
    "cuda_available": True,
    "cuda_unavailable_reason": None,
    "cuda_name": "Tesla P100",
    "cuda_capability": (6, 0),
    "cuda_total_bytes": 16 * 1024**3,
    "cuda_version": "12.8",
    "bf16_on_cuda": False,
    "host_peak_instrument": "unavailable",
}


def probe_of_a_card(_: Job, send: Send) -> None:
    """Find an old card in a sandbox."""
    send(ReadingMade(reading=make_facts(**CARD)))


@pytest.fixture(autouse=True)
def _one_cached_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test a cache with one complete model and one broken off; machine code is shared."""
    (tmp_path / "compiled").symlink_to(cache_folder() / "compiled")
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path))
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "complete.json").write_text("{}")
    (tmp_path / "broken-off").mkdir()


def by_subject(findings: list[Finding]) -> Iterator[tuple[str, bool]]:
    """Yield subject and verdict."""
    return ((finding.subject, finding.good) for finding in findings)


def test_a_machine_without_cuda_is_told_so_and_the_rest_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python, torch, processor, memory, instruments and bitsandbytes are there, and why CUDA is not."""
    monkeypatch.setitem(sys.modules, "pynvml", None)  # on whatever machine this test runs
    findings = examine(launcher=Launcher(work=replay, preload=["bench.workers.child"]))
    found = dict(by_subject(findings))
    assert found["CUDA"] is False
    assert all(found[name] for name in ("python", "torch", "processor", "memory", "packages", "workers"))
    assert found["host peak memory"]
    assert found["bitsandbytes on CPU"]
    assert found["NVIDIA driver"] is False
    assert next(f.text for f in findings if f.subject == "weights in the cache").endswith(": whole")
    assert "this build of torch has no CUDA; cells with" in next(
        f.text for f in findings if f.subject == "CUDA"
    )


def test_an_old_card_is_told_feature_by_feature() -> None:
    """What the card has is ok, and what it lacks says what to use in its place."""
    found = dict(
        by_subject(examine(launcher=Launcher(work=probe_of_a_card, preload=["bench.workers.child"])))
    )
    assert found["CUDA"]
    assert found["4-bit on CUDA"]
    assert not found["int8 on CUDA"]
    assert not found["bf16 on CUDA"]
    assert not found["flash_attention_2"]
    assert not found["host peak memory"]


def test_a_package_that_is_too_old_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is started with packages below their minimum; the line says what to install."""
    requirements = ["torch>=999", "no-such-package>=1", "pydantic>=2", 'ray>=1; extra == "cluster"']
    monkeypatch.setattr("importlib.metadata.requires", lambda _: requirements)
    torch, missing, packages = examine()
    assert torch.blocking
    assert torch.text.startswith("torch>=999 is needed and version ")
    assert torch.text.endswith("pip install 'torch>=999'")
    assert missing.text == (
        "no-such-package>=1 is needed and it is not installed; pip install 'no-such-package>=1'"
    )
    assert (packages.good, packages.text) == (False, "1 of 3 as new as needed")
