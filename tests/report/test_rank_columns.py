"""Cells over several GPUs beside the same on fewer: their columns in every writer, and what is refused."""

import io
from typing import Any

import pytest
from rich.console import Console

from bench.compare.comparison import Comparison, compare
from bench.records.readings import Caveat
from bench.records.records import Measurement, RankReading, Record
from bench.report.comparison_columns import comparison_frame
from bench.report.html import render_html
from bench.report.pages import render_markdown, render_terminal
from records_factory import (
    MIB,
    make_cell,
    make_environment,
    make_ledger,
    make_measurement,
    make_record,
    make_steps,
)


def on(gpus: int, speed: float, **changes: Any) -> Record:
    """Return a good run on so many GPUs of a CPU, at so many tokens/s in all; more strategies by name."""
    parallel = changes.pop("parallel", {"strategy": "fsdp2", "gpus": gpus} if gpus > 1 else {})
    cell = make_cell(id=f"tiny/lora-r8/b4-s256-x{gpus}", parallel=parallel)
    ranks = tuple(
        RankReading(
            rank=rank,
            ledger_peak_bytes=(600 - rank) * MIB,
            host_peak_bytes=None,
            cuda_allocated_peak_bytes=None,
            cuda_reserved_peak_bytes=None,
            step_time_ns=1_000_000 + 50_000 * rank,
        )
        for rank in range(gpus)
    )
    more = {"ranks": ranks} if gpus > 1 else {}
    measurement = make_measurement(
        steps=make_steps([speed] * 8), ledger=make_ledger(600 * MIB), **more | changes.pop("measured", {})
    )
    return make_record(
        cell=cell, key=f"{gpus}{len(str(parallel))}".ljust(64, "a")[:64], measurement=measurement, **changes
    )


def column(records: list[Record], name: str) -> list[Any]:
    """Return a column of the DataFrame, of one, two and four GPUs."""
    return [*comparison_frame(compare(records))[name]]


def test_each_gpu_is_set_against_the_fewest() -> None:
    """In all and per GPU; 1,800 on two is 90 % of 1,000 on one, 2,800 on four 70 %; ranks differ."""
    records = [on(1, 1000.0), on(2, 1800.0), on(4, 2800.0)]
    assert [1, 2, 4] == column(records, "gpus")
    assert [1000, 1800, 2800] == [round(value) for value in column(records, "tokens_per_second")]
    assert [1000, 900, 700] == [round(value) for value in column(records, "tokens_per_second_per_gpu")]
    _, two, four = column(records, "scaling_efficiency_share")
    assert [pytest.approx(0.9), pytest.approx(0.7)] == [two, four]
    assert [MIB, 3 * MIB] == column(records, "peak_spread_over_ranks_bytes")[1:]
    assert [pytest.approx(0.05), pytest.approx(0.15)] == column(records, "step_time_spread_over_ranks_share")[
        1:
    ]


def test_they_stand_in_every_writer() -> None:
    """Markdown, HTML and the terminal have them, in words of what a CPU has: processes."""
    comparison = compare([on(1, 1000.0), on(2, 1800.0)])
    out = io.StringIO()
    Console(file=out, width=250).print(render_terminal(comparison))
    for text in (render_markdown(comparison), render_html(comparison, ()), out.getvalue()):
        assert "90 % of 1" in text
        assert "599.00 to 600.00 MiB" in text or "599 to 600 MiB" in text
        assert "okens/s per process" in text
    assert "**Several GPUs**" in render_markdown(comparison)


def test_cells_of_one_process_have_none_of_these_columns() -> None:
    """A comparison without ranks looks as it did."""
    assert "gpus" not in comparison_frame(compare([on(1, 1000.0)]))
    assert "Several GPUs" not in render_markdown(compare([on(1, 1000.0)]))


def why(comparison: Comparison) -> str:
    """Return the last row's cell of scaling efficiency in words."""
    from bench.report.comparison_columns import comparison_columns

    (told,) = (one for one in comparison_columns(comparison.rows) if one.title == "Scaling efficiency")
    return told.text(comparison.rows[-1])


def test_what_cannot_be_known_of_scaling_says_why() -> None:
    """None on fewer, another environment, another setting, no steps, a busy machine."""
    two = on(2, 1800.0)
    elsewhere = make_environment(machine={"cpu_model": "another"})
    unsharded = on(1, 1.0, parallel={"strategy": "fsdp2", "gpus": 1, "reshard_after_forward": False})
    assert "n/a: not run alike on fewer" == why(compare([two]))
    assert "n/a: not run alike on fewer" == why(compare([on(1, 1000.0, environment=elsewhere), two]))
    assert "n/a: not run alike on fewer" == why(compare([unsharded, two]))
    assert "n/a: no speed" == why(
        compare([on(1, 1000.0), make_record(cell=two.cell, measurement=Measurement())])
    )
    busy = {"caveats": (Caveat(code="busy-machine", message="Others used the CPUs."),)}
    assert "n/a: others used the machine" == why(compare([on(1, 1000.0), on(2, 1800.0, measured=busy)]))
    assert "90 % of 1" == why(compare([on(1, 1000.0), two]))
