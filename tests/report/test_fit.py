"""Bounds as a user reads them: bars for the frontier, both sides in a table, what was assumed below."""

import io

from rich.console import Console

from bench.records.predictions import Bound, Change, Fit, Setting, Speed, Tried, check_fit
from bench.report.predicted.fit import frontier, gpu_sentences, render_markdown, render_terminal
from bench.scenario.catalogue import card_of_memory
from records_factory import make_prediction

GIB = 1024**3
CARD = card_of_memory("24GiB")


def tried(value: int, size_gib: int) -> Tried:
    """Return a value with the verdict on a prediction of this size."""
    return Tried(value=value, verdict=check_fit(make_prediction(size_gib * GIB), CARD))


def bound(method: str, axis: str, length: int, **changes: object) -> Bound:
    """Return a bound with nothing found."""
    fields: dict[str, object] = {
        "method": method,
        "axis": axis,
        "micro_batch": 1,
        "sequence_length": length,
        "rank": None if method == "full" else 16,
        "step": 1,
        "limit": 4096,
    }
    return Bound.model_validate(fields | changes)


def example() -> Fit:
    """Return a fit with every kind of bound: found, never fitting, without end, refused."""
    return Fit(
        model="tiny",
        card=CARD,
        torch="2.13.0",
        window="bf16, gradient checkpointing off, adamw-fused, attention sdpa",
        bounds=(
            bound("full", "micro_batch", 512, next=tried(1, 40)),
            bound("lora", "micro_batch", 512, fits=tried(8, 20), next=tried(9, 22)),
            bound("lora", "micro_batch", 2048, fits=tried(4096, 20)),
            bound("full", "micro_batch", 2048, refusal="aten::nonzero depends on data."),
            bound("lora", "sequence_length", 512, step=64, fits=tried(4032, 20), next=tried(4096, 40)),
        ),
    )


def test_the_frontier_is_drawn_as_bars() -> None:
    """A doubling is four blocks; what has no bar says why."""
    assert frontier(example()).splitlines() == [
        "    512  full  not even 1",
        f"    512  lora  {'█' * 13} 8",
        "",
        f"  2,048  lora  {'█' * 49} 4,096 or more",
        "  2,048  full  cannot be predicted",
    ]


def test_a_page_shows_both_sides_of_each_bound() -> None:
    """The last value that fits and the next, each with what it needs."""
    page = render_markdown(example())
    assert page.startswith("# tiny on a card with 24 GiB: what fits\n")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| lora")]
    assert rows[0][2:-1] == ["length 512, rank 16", "8", "22.70 GiB", "9", "24.90 GiB"]
    assert rows[0][-1] == "borderline (too close to call) |"
    assert rows[1][2:5] == ["length 2,048, rank 16", "4,096", "22.70 GiB"]
    assert rows[1][-1] == "4,096 is the limit |"
    assert rows[2][2:6] == ["batch 1, rank 16", "4,032", "22.70 GiB", "4,096"]
    assert "- full cannot be predicted: aten::nonzero depends on data." in page
    assert "- Searched: a sequence length in steps of 64." in page


def test_a_first_value_on_the_border_is_named_as_such_and_changes_that_fit_are_proposed() -> None:
    """Too close to call is not "not even 1"; what would make it fit is told below."""
    verdicts = (check_fit(make_prediction(12 * GIB), CARD),)
    change = Change(what="loss in chunks", prediction=make_prediction(12 * GIB), verdicts=verdicts)
    close = bound("full", "micro_batch", 512, next=tried(1, 22), changes=(change,))
    page = render_markdown(example().model_copy(update={"bounds": (close,)}))
    assert "512  full  1 is borderline" in page
    assert "- full at batch 1, length 512 fits with loss in chunks (13.90 GiB)." in page


def test_the_terminal_shows_the_same() -> None:
    """Chart, table and notes."""
    output = io.StringIO()
    Console(file=output, width=140, color_system=None).print(render_terminal(example()))
    text = output.getvalue()
    assert frontier(example()) in text
    assert "too close to call" in text
    assert "24.00 GiB usable" in text


def test_fastest_settings_stand_beside_the_largest() -> None:
    """Tokens/s as a range, fastest first; ranges that overlap are called not distinguishable."""

    def setting(checkpointing: str, batch: int, low: float, high: float) -> Setting:
        speed = Speed(card="a", low=low, point=(low + high) / 2, high=high, bound_by="compute")
        fields = {"method": "lora", "gradient_checkpointing": checkpointing, "micro_batch": batch}
        return Setting.model_validate(fields | {"sequence_length": 512, "speed": speed})

    overlapping = "not distinguishable (ranges overlap)"
    settings = (setting("non-reentrant", 8, 900, 1100), setting("off", 2, 1000, 1300))
    page = render_markdown(example().model_copy(update={"settings": settings}))
    lines = [line for line in page.splitlines() if "non-reentrant |" in line or "| off |" in line]
    assert [line.strip("| ").split(" | ") for line in lines] == [
        ["lora", "off", "512", "2", "1,000 to 1,300", "compute", "fastest", "2"],
        [
            "lora",
            "non-reentrant",
            "512",
            "8",
            "900 to 1,100",
            "compute",
            overlapping,
            "8",
        ],
    ]
    assert "Fastest settings that fit" not in render_markdown(example())


def test_the_fewest_gpus_are_told_and_where_one_card_does_as_much() -> None:
    """Full fits on four alone, three on each; LoRA on one card takes as many as those together."""
    over = {"gpus": 2}, {"gpus": 4}
    fit = Fit(
        model="tiny",
        card=CARD,
        torch="2.13.0",
        window="bf16",
        bounds=(
            bound("full", "micro_batch", 512, next=tried(1, 40)),
            bound("full", "micro_batch", 512, next=tried(1, 22), **over[0]),
            bound("full", "micro_batch", 512, fits=tried(3, 20), next=tried(4, 40), **over[1]),
            bound("lora", "micro_batch", 512, fits=tried(12, 20), next=tried(13, 40)),
            bound("lora", "micro_batch", 512, fits=tried(13, 20), next=tried(14, 40), **over[0]),
            bound("qlora", "micro_batch", 512, refusal="It is refused.", **over[1]),
        ),
    )
    assert [
        "At 512 tokens full needs 4 GPUs (2: too close to call): batch 3 on 4 (12 in all).",
        "At 512 tokens lora needs 1 GPU: batch 12 on 1, 13 on 2 (26 in all).",
        (
            "At 512 tokens lora on one GPU takes 12 sequences, full over 4 GPUs 12 in all: "
            "one card does as much as 4."
        ),
    ] == gpu_sentences(fit)
    page = render_markdown(fit)
    assert "How many GPUs:\n\n- At 512 tokens full needs" in page
    assert "- qlora on 4 cannot be predicted: It is refused." in page
    assert f"    512  lora on 2   {'█' * 16} 13" in frontier(fit)
    assert "| full on 2 |" in page
    assert "How many GPUs" not in render_markdown(example())
