"""What a reader sees of NVML: three labelled numbers, what a peak is of, and a flag at a throttled speed."""

import io

from rich.console import Console

from bench.compare.comparison import compare
from bench.records.predictions import Speed
from bench.records.records import Failure
from bench.report.html import render_html
from bench.report.pages import render_markdown, render_terminal
from gpu_factory import make_gpu, make_gpu_record
from records_factory import MIB, make_measurement, make_prediction, make_record


def test_three_labelled_numbers_and_where_each_comes_from() -> None:
    """Allocated, reserved and NVML stand side by side and are explained; the rest of the process is apart."""
    page = render_markdown(compare([make_gpu_record(make_gpu(2048 * MIB))]))
    header = next(line for line in page.splitlines() if line.startswith("| Method"))
    names = ("GPU, allocated", "GPU, reserved", "GPU, process by NVML")
    assert [True] * 3 == [f"Peak: {name}" in header for name in ("allocated", "reserved", "NVML, process")]
    assert "2.00 GiB" in next(line for line in page.splitlines() if line.startswith("| lora"))
    assert "| lora | of the process | It was process. | 50 ms | 70 ms |" in page
    assert "| lora | 0.49 GiB | 5.00 mJ | 200 W | 1,500 to 1,800 MHz | 70 °C | – |" in page  # noqa: RUF001 - as shown
    assert [True] * 3 == [f"**{name}**: " in page for name in names]


def test_predicted_speed_stands_beside_the_measured_one_in_every_form() -> None:
    """Low to high in the table of methods, and the error and the share of the roofline among the details."""
    told = Speed(card="h200", low=800, point=900, high=1100, bound_by="memory", roofline=4000)
    prediction = make_prediction(speeds=(told,))
    run = make_gpu_record(make_gpu(2048 * MIB)).replace(prediction=prediction)
    comparison = compare([run])
    page = render_markdown(comparison)
    assert "| Predicted tokens/s |" in page
    assert "| 1,000 (1,000 to 1,000) | 800 to 1,100 |" in page
    assert "| lora | 800 to 1,100 | 1,000 | 11.11 % | memory | 25 % |" in page
    output = io.StringIO()
    Console(file=output, width=200, color_system=None).print(render_terminal(comparison))
    html = render_html(comparison, ())
    assert [True, True] == ["800 to 1,100" in text for text in (output.getvalue(), html)]
    assert "Predicted tokens/s" not in render_markdown(compare([make_gpu_record(make_gpu(2048 * MIB))]))


def test_a_throttled_speed_is_flagged_wherever_it_is_shown() -> None:
    """In the sentence and in the table; memory is not flagged."""
    page = render_markdown(compare([make_gpu_record(make_gpu(steady={"event_reasons": 0x20}))]))
    line = next(line for line in page.splitlines() if line.startswith("| lora"))
    assert "1,000 (1,000 to 1,000), throttled" in line
    assert "trains 1,000 tokens/s while throttled" in page
    assert "thermal slowdown by the driver |" in page


def test_a_spoilt_run_is_among_those_that_did_not_end_ok() -> None:
    """With its sentence; its numbers are in no table."""
    message = "Process 7 came onto the GPU during the run, so this run does not count."
    good, spoilt = make_gpu_record(make_gpu(), run=2), make_gpu_record(make_gpu(9000 * MIB))
    spoilt = spoilt.replace(outcome="contaminated", failure=Failure(message=message))
    page = render_markdown(compare([spoilt, good]))
    assert f"| 1 | contaminated | – | {message} |" in page  # noqa: RUF001 - as shown
    assert "8.79 GiB" not in page


def test_without_nvml_a_page_says_nothing_of_it() -> None:
    """Neither a column nor an explanation."""
    assert "NVML" not in render_markdown(compare([make_record(measurement=make_measurement())]))
