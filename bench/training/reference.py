"""QLoRA in plain PyTorch, from the definitions: what bitsandbytes and peft do, to be read and compared with.

A frozen weight is stored as the number of the nearest of a few fixed values (its *code*) and a scale that it
shares with its neighbours; it is turned back into 16 bit whenever it is multiplied with. What is trained is a
small product of two matrices beside it. Sources: Dettmers et al. 2023 (QLoRA, arXiv 2305.14314), Dettmers et
al. 2022 (LLM.int8, arXiv 2208.07339), Hu et al. 2021 (LoRA, arXiv 2106.09685), bitsandbytes 0.50.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import UsageError
from bench.scenario.types import LoraMethod, QloraMethod
from bench.training.loading.models import DTYPES

BLOCK = 64  # weights that share a scale
SCALES_BLOCK = 256  # scales that share a scale of their own: double quantisation


def normal_float() -> Tensor:
    """Return NF4's values: quantiles of a normal distribution, which weights roughly have (QLoRA, section 3).

    Each is as likely as the next: eight above zero, seven below, and an exact zero. As bitsandbytes computes
    them (create_normal_map), in fp32 where that decides the last bit.
    """
    outermost = 0.9677083  # 1 less the mean of 1/32 and 1/30: half of what would belong to one value more

    def quantiles(count: int) -> Tensor:
        values: Tensor = torch.special.ndtri(torch.linspace(outermost, 0.5, count + 1)[:-1].double())
        return values.float()

    values = torch.cat([-quantiles(7), torch.zeros(1), quantiles(8).flip(0)])
    return values / values.max()


def tiny_float() -> Tensor:
    """Return FP4's values in the order of their bits: a sign, two of exponent, one of mantissa.

    The exponent counts downwards, as bitsandbytes has it (csrc/kernels.cu, dQuantizeFP4), and all is divided
    by the largest.
    """
    bits = torch.arange(8)
    exponent, mantissa = bits >> 1, bits & 1
    sizes = torch.where(exponent > 0, (2 + mantissa) * 2.0 ** (3 - exponent), mantissa / 16)
    return torch.cat([sizes, 0 - sizes]) / sizes.max()


def dynamic_map() -> Tensor:
    """Return the 256 values of scales' codes: a decimal exponent and a fraction (Dettmers 2015, 1511.04561).

    The smaller a value, the more bits its exponent takes and the fewer are left for the fraction.
    """
    values = [torch.tensor([0.0, 1.0])]
    for bits in range(7):
        edges = torch.linspace(0.1, 1, 2**bits + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (bits - 6)
        values += [middles, -middles]
    return torch.cat(values).sort().values


def nearest(values: Tensor, code: Tensor) -> Tensor:
    """Return the number of the nearest value of a code for each value; half way, the lower one's."""
    order = code.argsort(stable=True)  # FP4's are not in order
    middles = (code[order][:-1] + code[order][1:]) / 2
    return order[torch.bucketize(values, middles, out_int32=True)].to(torch.uint8)


def in_rows(flat: Tensor, size: int) -> Tensor:
    """Return a view of so many values to a row; a copy where the last row has to be filled up."""
    return (functional.pad(flat, (0, -len(flat) % size)) if len(flat) % size else flat).view(-1, size)


def in_blocks(values: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return values as rows between -1 and 1, the last one filled up, and each row's largest magnitude."""
    rows = in_rows(values.float().flatten(), size)
    absmax = rows.abs().amax(dim=1)
    return (rows * (1 / absmax.clamp(min=1e-38))[:, None]).clamp(-1, 1), absmax


@dataclass
class Scales:
    """Scales of blocks: 32 bit each, or 8 bit beside the mean of all and a scale for each 256 of them."""

    absmax: Tensor
    code: Tensor | None = None
    state2: Tensor | None = None
    offset: Tensor | None = None

    @classmethod
    def of(cls, absmax: Tensor, code: Tensor | None) -> "Scales":
        """Keep scales as they are, or quantise them too."""
        if code is None:
            return cls(absmax)
        offset = absmax.mean()
        rows, outer = in_blocks(absmax - offset, SCALES_BLOCK)
        if rows.device.type == "cpu":  # a table of 65,536 rows there (csrc/cpu_ops.cpp, norm_to_lut_index)
            rows = ((rows + 1) * 32767.5 + 0.5).floor() / 32767.5 - 1
        return cls(nearest(rows.flatten()[: len(absmax)], code), code, outer, offset)

    def restored(self) -> Tensor:
        """Return the scales in 32 bit."""
        if self.code is None or self.state2 is None or self.offset is None:
            return self.absmax
        outer = self.state2.repeat_interleave(SCALES_BLOCK)[: len(self.absmax)]
        return self.code[self.absmax.int()] * outer + self.offset


@dataclass
class FourBit:
    """How a weight of 4 bits, two to a byte, is read. Each byte stands for a pair of values."""

    shape: torch.Size
    code: Tensor
    state2: Scales

    @classmethod
    def packed(
        cls, weight: Tensor, code: Tensor, pairs: Tensor, scales: Tensor | None
    ) -> tuple[Tensor, "FourBit"]:
        """Quantise a weight."""
        rows, absmax = in_blocks(weight, BLOCK)
        count = weight.numel() + weight.numel() % 2  # the last byte may be half filled, with a zero
        high, low = nearest(rows.flatten()[:count], code).view(-1, 2).unbind(1)
        return (high << 4) | low, cls(weight.shape, pairs, Scales.of(absmax, scales))

    def restored(self, packed: Tensor, dtype: torch.dtype) -> Tensor:
        """De-quantise a weight."""
        values = functional.embedding(packed.int(), self.code).flatten()[: self.shape.numel()]
        rows = in_rows(values, BLOCK).mul_(self.state2.restored()[:, None])
        return rows.flatten()[: len(values)].view(self.shape).to(dtype)


@dataclass
class EightBit:
    """How a weight of 8 bits is read: a row of it has one scale, and 127 steps up and down (LLM.int8)."""

    shape: torch.Size
    SCB: Tensor

    @classmethod
    def packed(cls, weight: Tensor) -> tuple[Tensor, "EightBit"]:
        """Quantise a weight, from fp16 as bitsandbytes does."""
        half = weight.to(torch.float16)
        absmax = half.abs().amax(dim=1).float()
        return torch.round(half * (127.0 / absmax)[:, None]).to(torch.int8), cls(weight.shape, absmax)

    def restored(self, packed: Tensor, dtype: torch.dtype) -> Tensor:
        """De-quantise a weight."""
        return packed.to(dtype).mul_(self.SCB[:, None] * (1 / 127))


class Product(torch.autograd.Function):
    """A product with a weight that is there in 16 bit only meanwhile.

    Of plain operations autograd would keep each de-quantised weight until the backward pass: the whole model
    in 16 bit. So it is de-quantised anew there. As it is frozen, its input is not needed, and not kept.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: "QuantisedLinear") -> Tensor:
        """Return the layer's output."""
        ctx.layer = layer
        return functional.linear(inputs, layer.restored(inputs.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the input."""
        return gradients[0] @ ctx.layer.restored(gradients[0].dtype), None


class QuantisedLinear(nn.Module):
    """A frozen linear layer; how its weight is to be read stands on the weight, as bitsandbytes has it."""

    weight: Any

    def __init__(
        self, layer: nn.Linear, packed: Tensor, state: FourBit | EightBit, dtype: torch.dtype | None
    ) -> None:
        """Take the packed weight; products are in ``dtype``, or in that of the input."""
        super().__init__()
        self.in_features, self.out_features, self.dtype = layer.in_features, layer.out_features, dtype
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.weight.quant_state = state
        self.bias = layer.bias

    def restored(self, dtype: torch.dtype) -> Tensor:
        """De-quantise the weight."""
        weight: Tensor = self.weight.quant_state.restored(self.weight, dtype)
        return weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply in the compute dtype."""
        cast = inputs.to(self.dtype or inputs.dtype)
        outputs: Tensor = Product.apply(cast, self)  # type: ignore[no-untyped-call]  # torch's
        return outputs.to(inputs.dtype)


class LoraLinear(nn.Module):
    """A frozen layer W and what is learnt beside it: W x + alpha / rank * B (A x), B zero at first."""

    def __init__(self, base: Any, method: LoraMethod | QloraMethod) -> None:
        """Draw A as peft does, which rounds it to the compute dtype afterwards."""
        super().__init__()
        device, rank = base.weight.device, method.rank
        self.in_features, self.out_features, self.r = base.in_features, base.out_features, {"default": rank}
        self.scaling, self.base_layer, self.dropout = method.alpha / rank, base, nn.Dropout(method.dropout)
        self.lora_A = nn.Linear(self.in_features, rank, bias=False, device=device, dtype=torch.float32)
        self.lora_B = nn.Linear(rank, self.out_features, bias=False, device=device, dtype=torch.float32)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=5**0.5)
        nn.init.zeros_(self.lora_B.weight)

    def get_base_layer(self) -> Any:
        """Return the frozen layer, as peft's layers do."""
        return self.base_layer

    def forward(self, inputs: Tensor) -> Tensor:
        """Add the update in the adapter's dtype."""
        outputs: Tensor = self.base_layer(inputs)
        narrow = self.lora_A(self.dropout(inputs.to(self.lora_A.weight.dtype)))
        update: Tensor = self.lora_B(narrow) * self.scaling
        return outputs + update.to(outputs.dtype)


def adapt(model: Any, method: LoraMethod | QloraMethod) -> Any:
    """Quantise the linear layers but the output layer, freeze all, and put adapters beside those targeted."""
    if getattr(model.config, "quantization_config", None) is not None:
        raise UsageError(
            f"method {method.name!r} has the reference implementation, which quantises by itself, and this "
            "checkpoint is stored quantised; take one in 16 bit, or leave implementation out."
        )
    compute_dtype = DTYPES[method.compute_dtype] if isinstance(method, QloraMethod) else None
    quantise, head = _quantiser(method, model.device), model.get_output_embeddings()
    names = [name for name, each in model.named_modules() if isinstance(each, nn.Linear) and each is not head]
    for name in names:
        layer = model.get_submodule(name)
        model.set_submodule(name, QuantisedLinear(layer, *quantise(layer.weight), compute_dtype))
    for parameter in model.parameters():
        parameter.requires_grad = False
        if method.kbit_preparation and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()  # norms and embeddings, as peft does
    targeted = [name for name in names if _targets(name, method.target_modules)]
    if not targeted:
        raise UsageError(
            f"method {method.name!r} targets none of the linear layers that its reference implementation "
            "quantises; correct target_modules, or leave implementation out."
        )
    for name in targeted:
        model.set_submodule(name, LoraLinear(model.get_submodule(name), method))
    return model


def _quantiser(
    method: LoraMethod | QloraMethod, device: torch.device
) -> Callable[[Tensor], tuple[Tensor, FourBit | EightBit]]:
    """Return what packs a weight; all layers share the codes."""
    if isinstance(method, LoraMethod):
        return EightBit.packed
    with torch.device("cpu"):
        code = (normal_float() if method.quantisation == "nf4" else tiny_float()).to(device)
        scales = dynamic_map().to(device) if method.double_quantisation else None
    return partial(FourBit.packed, code=code, pairs=torch.cartesian_prod(code, code), scales=scales)


def _targets(name: str, wanted: str | tuple[str, ...]) -> bool:
    """Tell whether a layer is meant, by the rules of peft: a pattern of the whole name, or how it ends."""
    if isinstance(wanted, str):
        return wanted == "all-linear" or re.fullmatch(wanted, name) is not None
    return any(name == one or name.endswith(f".{one}") for one in wanted)
