"""How torch was set, and what is paged, on a page about cells on a GPU."""

from bench.compare.comparison import compare
from bench.records.readings import PagedMemory, TorchSettings
from bench.report.details import section_tables
from bench.report.pages import render_markdown
from records_factory import MIB, make_cell, make_measurement, make_phases, make_record

SETTINGS = TorchSettings(
    float32_matmul_precision="high",
    matmul_allow_tf32=True,
    cudnn_allow_tf32=None,
    cudnn_benchmark=False,
    cudnn_deterministic=False,
    deterministic_algorithms="warn only",
    bf16_reduced_precision_reduction=True,
    allocator_backend="native",
    allocator_settings="expandable_segments:True",
)


def test_settings_are_shown_for_cells_on_a_gpu_only() -> None:
    """What torch does not tell is not measured; a CPU has no use for most of it."""
    on_cpu = make_record(measurement=make_measurement(torch_settings=SETTINGS))
    on_gpu = make_record(cell=make_cell(device="cuda"), measurement=make_measurement(torch_settings=SETTINGS))
    tables = dict(section_tables(compare([on_cpu, on_gpu]), lambda row: row.device))
    assert tables["How torch was set"].rows == (
        (
            "cuda",
            "high",
            "on, n/a",
            "off",
            "algorithms warn only, cuDNN off",
            "reduced precision on",
            "native, expandable_segments:True",
        ),
    )


def test_paged_state_has_a_column_of_its_own_where_there_is_any() -> None:
    """It is in no other number, so it must not be missed."""
    phases = make_phases(cuda_allocated_peak_bytes=1024 * MIB)
    pages = [
        render_markdown(
            compare(
                [
                    make_record(
                        cell=make_cell(device="cuda"),
                        measurement=make_measurement(
                            phases=phases, paged=PagedMemory(paged_bytes=size, paged_tensors=1)
                        ),
                    )
                ]
            )
        )
        for size in (512 * MIB, 0)
    ]
    assert [True, False] == ["Paged optimizer state" in page for page in pages]
    assert "| 0.50 GiB |" in pages[0]
