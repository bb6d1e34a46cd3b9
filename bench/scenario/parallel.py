"""How a cell is spread over several GPUs: the strategy, how many, and what FSDP is told."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from bench.scenario.types import Dtype, Frozen, MethodSpec, TrainingSpec

_REFUSED = {
    "deepspeed": "must be fsdp2, which shards as stage 3 of ZeRO does (steps of DeepSpeed are not predicted)",
}
ParallelDtype = Literal["as-trained", Dtype]


def _not_refused(name: object) -> object:
    if isinstance(name, str) and name in _REFUSED:
        raise ValueError(_REFUSED[name])
    return name


Strategy = Annotated[Literal["none", "ddp", "fsdp1", "fsdp2"], BeforeValidator(_not_refused)]


class ParallelSpec(Frozen):
    """One process for each GPU, each with a batch of its own; fields but the first two are of FSDP."""

    strategy: Strategy = Field(
        "none",
        description="ddp holds all weights on each GPU (DistributedDataParallel), fsdp2 a share of each "
        "(fully_shard), fsdp1 a share of each layer's, flattened (FullyShardedDataParallel).",
    )
    gpus: int = Field(1, ge=1, le=4096, description="How many; micro_batch is for each of them.")
    reshard_after_forward: bool = Field(
        default=True, description="Free gathered weights after the forward pass and gather them again."
    )
    param_dtype: ParallelDtype = Field(
        "as-trained", description="Dtype in which weights are gathered and used (MixedPrecisionPolicy)."
    )
    reduce_dtype: ParallelDtype = Field("as-trained", description="Dtype in which gradients are reduced.")
    wrap: tuple[str, ...] = Field(
        (), description="Classes of layers that are sharded each by itself; none: the model's own list."
    )
    activation_checkpointing: bool = Field(
        default=False,
        exclude_if=lambda inside: not inside,
        description="fsdp1: checkpoint inside its layers, as accelerate's fsdp_activation_checkpointing "
        "does, and not as the model does by itself, which before transformers 4.52 was around them.",
    )
    cpu_offload: bool = Field(
        default=False,
        description="fsdp2: weights, gradients and optimizer state lie on the host; weights come to the GPU "
        "layer by layer, and the optimizer runs on the CPU (CPUOffloadPolicy).",
    )

    @property
    def several(self) -> bool:
        """Whether there is more than the one process that trains alone."""
        return self.strategy != "none"

    @property
    def sharded(self) -> bool:
        """Whether each GPU holds a share of the weights."""
        return self.strategy in {"fsdp1", "fsdp2"}


LOOPS_OVER_SEVERAL = ("hf-trainer", "trl-sft")


def contradictions_of_ranks(
    parallel: ParallelSpec, training: TrainingSpec, method: MethodSpec, driver: str
) -> Iterator[tuple[str, str, str]]:
    """Yield part, field and what is wrong: what cannot be, and what is not predicted over several GPUs."""
    if parallel.cpu_offload and (parallel.strategy != "fsdp2" or driver != "window"):
        message = "is for strategy fsdp2 in the window's own loop; leave it out"
        yield "parallel", "cpu_offload", message
    if parallel.strategy == "fsdp1" and parallel.reduce_dtype not in {"as-trained", parallel.param_dtype}:
        message = "must be param_dtype's under fsdp1 (another is not predicted to the byte yet)"
        yield "parallel", "reduce_dtype", f"{message}; leave it out, which means the same"
    if parallel.several:
        yield from _not_predicted(parallel, training, method, driver)


def _not_predicted(
    parallel: ParallelSpec, training: TrainingSpec, method: MethodSpec, driver: str
) -> Iterator[tuple[str, str, str]]:
    if method.kind == "peft" or getattr(method, "implementation", "bitsandbytes") == "reference":
        yield "parallel", "strategy", "is not predicted for this method; choose full, lora or qlora"
    of_fsdp1, of_fsdp2 = (parallel.strategy == name for name in ("fsdp1", "fsdp2"))
    if driver != "window":
        yield from _of_trainer(parallel, driver)
        of_fsdp2 = False  # whose dtypes accelerate takes from autocast
    only: dict[str, tuple[str, ...]] = {
        "loss": ("full",),
        "kernels": ("torch",),
        "gradient_checkpointing": ("off", "non-reentrant", *(["reentrant"] if of_fsdp1 else [])),
        "autocast": ("off",) if of_fsdp2 else ("off", "bf16"),
        "optimizer": ("adamw-fused", "adamw-foreach", "adamw-loop", "sgd", "sgd-momentum"),
    }
    for field, allowed in only.items():
        if getattr(training, field) not in allowed:
            advice = f"set {', '.join(allowed)}"
            advice += ", and param_dtype for lower precision" if of_fsdp2 and field == "autocast" else ""
            yield "training", field, f"is not predicted so under {parallel.strategy}; {advice}"


def _of_trainer(parallel: ParallelSpec, driver: str) -> Iterator[tuple[str, str, str]]:
    """Refuse loops that are not run over several GPUs."""
    if driver not in LOOPS_OVER_SEVERAL:
        instead = f"choose {', '.join(LOOPS_OVER_SEVERAL)}, or leave the driver out"
        yield "parallel", "strategy", f"is not predicted in loop {driver}; {instead}"
    elif parallel.strategy == "fsdp1":
        yield "parallel", "strategy", f"must be ddp or fsdp2 in loop {driver}; fsdp1 is for the window's own"
