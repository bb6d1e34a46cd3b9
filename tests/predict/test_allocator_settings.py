"""The allocator's settings: the syntax of PYTORCH_CUDA_ALLOC_CONF and the rounding it asks for."""

import pytest

from bench.errors import UsageError
from bench.metrics import MIB
from bench.predict.allocator.settings import AllocatorSettings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", AllocatorSettings()),
        ("expandable_segments:True", AllocatorSettings(expandable_segments=True)),
        (" max_split_size_mb : 128 ", AllocatorSettings(max_split_bytes=128 * MIB)),
        ("backend:native,pinned_use_background_threads:True", AllocatorSettings()),
        ("large_segment_size_mb:64", AllocatorSettings(large_segment_bytes=64 * MIB)),
        ("roundup_power2_divisions:8", AllocatorSettings(roundup_power2_divisions=(8,) * 16)),
        (
            "roundup_power2_divisions:[4:1,8:2,>:4]",
            AllocatorSettings(roundup_power2_divisions=(1, 1, 1, 2) + (4,) * 12),
        ),
        (
            "garbage_collection_threshold:0.8,per_process_memory_fraction:0.5",
            AllocatorSettings(garbage_collection_threshold=0.8, per_process_memory_fraction=0.5),
        ),
    ],
)
def test_text_is_read_and_given_back(text: str, expected: AllocatorSettings) -> None:
    """Each setting is read as torch reads it, and its own text reads to the same settings."""
    settings = AllocatorSettings.parse(text)
    assert expected == settings
    assert expected == AllocatorSettings.parse(str(settings))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("max_split_size:128", 'Perhaps you meant "max_split_size_mb"'),
        ("backend:cudaMallocAsync", "backend:cudaMallocAsync is not modelled"),
        ("max_split_size_mb:19", "max_split_size_mb must be at least 20"),
        ("large_segment_size_mb:10", "large_segment_size_mb must be more than 10"),
        ("large_segment_size_mb:64,max_non_split_rounding_mb:63", "must be at least 64"),
        ("max_split_size_mb:64MB", "64MB is not a whole number"),
        ("expandable_segments:true", "true is neither True nor False"),
        ("expandable_segments", "expandable_segments has no value"),
        ("expandable_segments:", "expandable_segments has no value"),
        (":True", '"" is not a key'),
        ("expandable_segments:True max_split_size_mb:64", "neither True nor False"),
        ("garbage_collection_threshold:1", "below 1"),
        ("per_process_memory_fraction:x", "x is not a fraction"),
        ("roundup_power2_divisions:3", "3 is not a power of two"),
        ("roundup_power2_divisions:[256:1", '"]" is missing after [256:1'),
    ],
)
def test_what_torch_would_refuse_or_nobody_models_is_named(text: str, named: str) -> None:
    """Wrong settings are refused with the text and the place of the mistake."""
    with pytest.raises(UsageError) as refused:
        AllocatorSettings.parse(text)
    assert named in str(refused.value)
    assert text in str(refused.value)


def test_sizes_are_rounded_to_512_bytes() -> None:
    """Without divisions every size becomes a multiple of 512, at least one."""
    settings = AllocatorSettings()
    assert [512, 512, 1024, 1024] == [settings.rounded(size) for size in (1, 512, 513, 1024)]


def test_sizes_are_rounded_to_divisions_of_a_power_of_two() -> None:
    """With four divisions 1200 KiB becomes 1280; powers of two stay, and small sizes as well."""
    settings = AllocatorSettings(roundup_power2_divisions=(4,) * 16)
    sizes = {1200 << 10: 1280 << 10, 1 << 20: 1 << 20, (1 << 20) + 1: 1280 << 10, 2048: 2048, 2049: 2560}
    assert sizes == {size: settings.rounded(size) for size in sizes}


def test_each_power_of_two_has_divisions_of_its_own() -> None:
    """Sizes from 2 to 4 MiB take the second entry, and everything beyond 32 GiB the last."""
    divisions = (0, 2) + (0,) * 13 + (2,)
    settings = AllocatorSettings(roundup_power2_divisions=divisions)
    sizes = {2 * MIB + 1: 3 * MIB, MIB + 1: MIB + 512, (64 << 30) + 1: 96 << 30}
    assert sizes == {size: settings.rounded(size) for size in sizes}
