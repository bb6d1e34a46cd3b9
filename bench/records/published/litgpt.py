"""What follows for a row of measurements from litgpt having made it, and how that is known."""

import re
from typing import Any

_LITGPT = re.compile(r"lit-?gpt|lightning", re.IGNORECASE)
_DAY = re.compile(r"\d{4}(-\d{2}){0,2}")
TAKEN_FOR_LITGPT = (
    'By its name and loss = "chunked" this is taken for litgpt, whose own models are predicted as of each '
    "row's date (set platform.litgpt to say so)."
)


def run_by_litgpt(content: dict[str, Any], source: str) -> dict[str, Any]:
    """Return a row's content with what follows from litgpt having run it, if its platform or source says so.

    Its loss in chunks keeps the logits of all of them, and only such a loss has logits to copy or to keep.
    """
    training, platform = content.get("training", {}), content.get("platform", {})
    if not (isinstance(training, dict) and isinstance(platform, dict)) or training.get("loss") != "chunked":
        return content
    keeps_logits = training.get("upcast_outputs") or training.get("keep_outputs")
    date = str(content.get("date"))
    named = _LITGPT.search(f"{source} {content.get('software')}") and _DAY.fullmatch(date)
    if "litgpt" not in platform and keeps_logits and named:
        platform = platform | {"litgpt": f"{date}-01-01"[: len("2024-01-01")]}
    if "litgpt" in platform:
        training = training | {"loss": "chunked-logits"}
    return content | {"training": training, "platform": platform}
