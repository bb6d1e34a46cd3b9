"""Predicted speeds set against each other: which setting is the fastest, and which cannot be told from it."""

from bench.compare.speeds import Ranked, rank_settings
from bench.records.predictions import Setting, Speed


def setting(method: str, checkpointing: str, batch: int, point: float, length: int = 512) -> Setting:
    """Return a setting with a range of ten per cent on either side."""
    speed = Speed(card="rtx4090", low=point / 1.1, point=point, high=point * 1.1)
    fields = {"method": method, "gradient_checkpointing": checkpointing, "micro_batch": batch}
    return Setting.model_validate(fields | {"sequence_length": length, "speed": speed})


def shown(one: Ranked) -> tuple[str, str, int, str, int]:
    """Return what a line says of a setting."""
    own = one.setting
    return own.method, own.gradient_checkpointing, own.micro_batch, one.standing, one.from_batch


def test_fastest_setting_of_each_kind_is_ranked_by_its_range() -> None:
    """Not the largest batch but the fastest counts; where ranges overlap, neither is called faster."""
    tried = [
        setting("lora", "off", 1, 500.0),
        setting("lora", "off", 2, 1000.0),
        setting("lora", "non-reentrant", 1, 600.0),
        setting("lora", "non-reentrant", 4, 900.0),
        setting("lora", "non-reentrant", 8, 890.0),
        setting("qlora", "off", 8, 700.0),
        setting("full", "off", 8, 400.0, length=2048),
    ]
    overlapping = "not distinguishable (ranges overlap)"
    assert [shown(one) for one in rank_settings(tried)] == [
        ("lora", "off", 2, "fastest", 2),
        ("lora", "non-reentrant", 4, overlapping, 4),
        ("qlora", "off", 8, "slower", 8),
        ("full", "off", 8, "fastest", 8),
    ]


def test_smallest_batch_that_is_as_fast_is_told() -> None:
    """It takes less memory; a setting whose speed is refused is left out."""
    tried = [setting("lora", "off", batch, point) for batch, point in ((1, 500.0), (2, 950.0), (4, 1000.0))]
    refused = tried[0].model_copy(
        update={"method": "boft", "speed": Speed(card="rtx4090", refused="no time")}
    )
    assert [shown(one) for one in rank_settings([*tried, refused])] == [("lora", "off", 4, "fastest", 2)]
