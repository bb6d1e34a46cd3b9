"""How torch was set on a GPU, below the comparison; no arithmetic."""

from collections.abc import Callable, Sequence

from bench.compare.measured import Measured
from bench.report.layout import Table
from bench.report.text import NOT_MEASURED


def torch_table(rows: Sequence[Measured], name: Callable[[Measured], str]) -> Table:
    """Return the settings that change speed or results, of the cells on a GPU."""
    header = (
        "Cell",
        "float32 products",
        "TF32 (products, cuDNN)",
        "cuDNN benchmark",
        "Deterministic",
        "bf16 sums",
        "Allocator",
    )
    return Table(
        header=header,
        left=len(header),
        rows=tuple(
            (
                name(row),
                found.float32_matmul_precision or NOT_MEASURED,
                f"{_switch(found.matmul_allow_tf32)}, {_switch(found.cudnn_allow_tf32)}",
                _switch(found.cudnn_benchmark),
                f"algorithms {found.deterministic_algorithms}, cuDNN {_switch(found.cudnn_deterministic)}",
                f"reduced precision {_switch(found.bf16_reduced_precision_reduction)}",
                f"{found.allocator_backend or NOT_MEASURED}, {found.allocator_settings or 'by default'}",
            )
            for row in rows
            if row.device == "cuda" and (found := row.torch_settings)
        ),
    )


def _switch(value: bool | None) -> str:  # noqa: FBT001 - a switch's position is what is written
    return NOT_MEASURED if value is None else "on" if value else "off"
