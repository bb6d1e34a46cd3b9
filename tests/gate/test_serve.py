"""What a side says of itself where its packages come from sources."""

from bench.gate.protocol import Opening
from bench.gate.serve import stamped
from records_factory import make_record


def test_versions_of_what_comes_from_sources_are_marked() -> None:
    """By import name, once each; other versions and the machine stay; a version may have a label already."""
    environment = make_record().environment
    versions = {"peft": "0.21.2", "finetune-bench": "0.1.0+local", "torch": "2.13.0"}
    environment = environment.replace(versions=versions)
    opening = Opening(stamped=("peft", "bench", "flash_attn", "mine"), label="git.1a2b3c")
    expected = {
        "peft": "0.21.2+git.1a2b3c",
        "finetune-bench": "0.1.0+local.git.1a2b3c",
        "flash-attn": "0+git.1a2b3c",
        "torch": "2.13.0",
    }
    assert environment.replace(versions=expected) == stamped(environment, opening)
    assert environment == stamped(environment, Opening())
