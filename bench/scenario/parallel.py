"""How a cell is spread over several GPUs: the strategy, how many, and what FSDP2 is told."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from bench.scenario.types import Dtype, Frozen, MethodSpec, TrainingSpec

_REFUSED = {
    "fsdp1": "must be fsdp2, which shards each parameter by itself (flat ones of FSDP1 are not predicted)",
    "deepspeed": "must be fsdp2, which shards as stage 3 of ZeRO does (steps of DeepSpeed are not predicted)",
}
ParallelDtype = Literal["as-trained", Dtype]


def _not_refused(name: object) -> object:
    if isinstance(name, str) and name in _REFUSED:
        raise ValueError(_REFUSED[name])
    return name


Strategy = Annotated[Literal["none", "ddp", "fsdp2"], BeforeValidator(_not_refused)]


class ParallelSpec(Frozen):
    """One process for each GPU, each with a batch of its own; fields but the first two are FSDP2's."""

    strategy: Strategy = Field(
        "none",
        description="ddp holds all weights on each GPU (DistributedDataParallel), fsdp2 a share of them "
        "(fully_shard).",
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
    cpu_offload: bool = Field(default=False, description="Not predicted yet: refused.")

    @property
    def several(self) -> bool:
        """Whether there is more than the one process that trains alone."""
        return self.strategy != "none"


_FSDP2_ALONE = ("reshard_after_forward", "param_dtype", "reduce_dtype", "wrap")


def contradictions_of_ranks(
    parallel: ParallelSpec, training: TrainingSpec, method: MethodSpec, driver: str
) -> Iterator[tuple[str, str, str]]:
    """Yield part, field and what is wrong: what cannot be, and what is not predicted over several GPUs."""
    if parallel.cpu_offload:
        yield "parallel", "cpu_offload", "is not predicted; leave it out"
    sharded = parallel.strategy == "fsdp2"
    without_meaning = () if sharded else _FSDP2_ALONE if parallel.several else ("gpus", *_FSDP2_ALONE)
    for field in without_meaning:
        if getattr(parallel, field) != ParallelSpec.model_fields[field].default:
            right = "ddp or fsdp2" if field == "gpus" else "fsdp2"
            yield (
                "parallel",
                field,
                f"needs strategy {right}, not {parallel.strategy}; set that, or leave it out",
            )
    if parallel.several:
        yield from _not_predicted(parallel, training, method, driver)
    if sharded:
        yield from _of_quantised(parallel, method)


def _not_predicted(
    parallel: ParallelSpec, training: TrainingSpec, method: MethodSpec, driver: str
) -> Iterator[tuple[str, str, str]]:
    if method.kind == "peft" or getattr(method, "implementation", "bitsandbytes") == "reference":
        yield "parallel", "strategy", "is not predicted for this method; choose full, lora or qlora"
    if driver != "window":
        yield "parallel", "strategy", f"is not predicted in loop {driver}; leave the driver out"
    sharded = parallel.strategy == "fsdp2"
    only: dict[str, tuple[str, ...]] = {
        "loss": ("full",),
        "kernels": ("torch",),
        "gradient_checkpointing": ("off", "non-reentrant"),
        "autocast": ("off",) if sharded else ("off", "bf16"),
        "optimizer": ("adamw-fused", "adamw-foreach", "adamw-loop", "sgd", "sgd-momentum"),
    }
    for field, allowed in only.items():
        if getattr(training, field) not in allowed:
            advice = f"set {', '.join(allowed)}"
            advice += ", and param_dtype for lower precision" if sharded and field == "autocast" else ""
            yield "training", field, f"is not predicted so under {parallel.strategy}; {advice}"


def _of_quantised(parallel: ParallelSpec, method: MethodSpec) -> Iterator[tuple[str, str, str]]:
    """Refuse packed weights that FSDP2 cannot shard, or would cast as if they were numbers."""
    if method.kind == "lora" and method.base == "int8":
        yield "method", "base", "int8 cannot be sharded by fsdp2; set strategy to ddp, or choose qlora"
    if method.kind != "qlora":
        return
    if method.quant_storage == "uint8":
        message = "must be bf16 under fsdp2, which gathers packed weights with the others; set it to bf16"
        yield "method", "quant_storage", message
    if parallel.param_dtype not in {"as-trained", "bf16"}:
        message = "would cast packed 4-bit weights as if they were numbers; leave it out, or set it to bf16"
        yield "parallel", "param_dtype", message
