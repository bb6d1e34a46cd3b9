"""The modules of litgpt's models, op for op and name for name: what lives until a function returns counts.

Source: https://github.com/Lightning-AI/litgpt, model.py and lora.py; the day of a ``Choice`` tells which of
their rules held. Nothing here is ever run on data.
"""

from collections.abc import Collection
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.scenario.types import QloraMethod

HALF_PRECISION_FIXED = "2023-10-24"
"""Pull requests 606 and 667: RMSNorm copies to fp32, residuals come last, a single key head is expanded."""
PRODUCT_IN_HALF = "2024-02-23"
"""Pull request 941: RMSNorm's output is 16-bit before its weight is applied, not after."""
PADS_IN_PLACE = "2024-05-06"
"""Pull request 770: an update is padded in place, without transposing and copying it first."""

QKV = ("query", "key", "value")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What decides a model of litgpt: the fields of its Config that differ between models."""

    layers: int
    width: int
    inner: int
    heads: int
    groups: int
    head_width: int
    rotary_width: int
    vocabulary: int
    norm: str = "rms"
    unit_offset: bool = False
    mlp: str = "silu"
    bias: bool = False
    head_bias: bool = False
    parallel: bool = False
    shared_norm: bool = False
    scaled: bool = False
    post_norms: bool = False
    capped: bool = False
    slides: int = 0
    epsilon: float = 1e-5


class Choice(NamedTuple):
    """What every module is built with."""

    method: Any
    dtype: torch.dtype
    day: str

    def linear(self, inputs: int, outputs: int, *, bias: bool) -> nn.Module:
        """Return a linear layer; one to be 4-bit holds the fp16 weight that Fabric quantises."""
        if not isinstance(self.method, QloraMethod):
            return nn.Linear(inputs, outputs, bias=bias, dtype=self.dtype)
        from bitsandbytes.nn import Linear4bit

        layer: nn.Module = Linear4bit(
            inputs,
            outputs,
            bias=bias,
            compute_dtype=self.dtype,
            compress_statistics=self.method.double_quantisation,
            quant_type=self.method.quantisation,
        )
        layer.weight.data = layer.weight.data.to(torch.float16)
        if bias:
            layer.bias.data = layer.bias.data.to(self.dtype)
        return layer


class Adapted(nn.Module):
    """A linear layer, and LoRA's update beside it once there is one (lora.py, LoRALinear)."""

    def __init__(self, inputs: int, outputs: int, choice: Choice, *, bias: bool) -> None:
        super().__init__()
        self.linear = choice.linear(inputs, outputs, bias=bias)
        self.choice, self.inputs, self.outputs = choice, inputs, outputs
        self.scaling = 0.0

    def adapt(self, parts: int, outputs: int) -> None:
        """Add the two matrices, of ``parts`` adapters side by side."""
        method = self.choice.method
        self.lora_A = nn.Parameter(torch.empty(method.rank * parts, self.inputs, dtype=self.choice.dtype))
        self.lora_B = nn.Parameter(torch.empty(outputs, method.rank, dtype=self.choice.dtype))
        self.lora_dropout = nn.Dropout(method.dropout) if method.dropout else nn.Identity()
        self.scaling = method.alpha / method.rank

    def forward(self, values: Tensor) -> Tensor:
        pretrained: Tensor = self.linear(values)
        if not self.scaling:
            return pretrained
        low = self.lora_dropout(values) @ self.lora_A.transpose(0, 1)
        updated: Tensor = low @ self.lora_B.transpose(0, 1) * self.scaling
        return pretrained + updated


class FusedQkv(Adapted):
    """Queries, keys and values by one layer, some of them adapted (lora.py, LoRAQKVLinear)."""

    def __init__(self, shape: Shape, choice: Choice) -> None:
        outputs = (shape.heads + 2 * shape.groups) * shape.head_width
        super().__init__(shape.width, outputs, choice, bias=shape.bias)
        self.shape = shape
        self.sizes: list[int] = []

    def adapt_parts(self, parts: Collection[str]) -> None:
        shape = self.shape
        heads = dict.fromkeys(QKV, shape.groups) | {"query": shape.heads}
        self.sizes = [heads[part] * shape.head_width for part in QKV if part in parts]
        if self.sizes:
            self.adapt(len(self.sizes), sum(self.sizes))

    def forward(self, values: Tensor) -> Tensor:
        """Return the layer's output, plus the update of what is adapted among zeros."""
        pretrained: Tensor = self.linear(values)
        if not self.scaling:
            return pretrained
        low = functional.linear(self.lora_dropout(values), self.lora_A).transpose(-2, -1)
        weight = self.lora_B.unsqueeze(-1)
        if self.shape.heads == self.shape.groups:
            updated = functional.conv1d(low, weight, groups=len(self.sizes))
        else:
            pairs = zip(low.chunk(len(self.sizes), dim=1), weight.split(self.sizes), strict=True)
            updated = torch.cat([functional.conv1d(part, own) for part, own in pairs], dim=1)
        updated = updated.transpose(-2, -1)
        padded = self._padded(updated) * self.scaling
        return pretrained + padded

    def _padded(self, updated: Tensor) -> Tensor:
        """Put zeros where nothing is adapted (zero_pad); where all is, there is nothing to do."""
        if len(self.sizes) == len(QKV):
            return updated
        if self.choice.day >= PADS_IN_PLACE:
            if not hasattr(self, "places"):  # made once, in the first forward pass
                self.register_buffer("places", self._places(updated), persistent=False)
            zeros = updated.new_zeros(*updated.shape[:-1], self.outputs)
            places: Any = self.places
            return zeros.index_copy_(-1, places, updated)
        turned = updated.transpose(0, 1)
        zeros = turned.new_zeros(*turned.shape[:-1], self.outputs).view(-1, self.outputs)
        filled = zeros.index_copy(1, self._places(updated), turned.reshape(-1, sum(self.sizes)))
        return filled.view(*turned.shape[:-1], self.outputs).transpose(0, 1)

    def _places(self, updated: Tensor) -> Tensor:
        """Return the adapted outputs' indices; of meta tensors only their number matters."""
        return torch.arange(sum(self.sizes), device=updated.device)


class RmsNorm(nn.Module):
    """model.py, RMSNorm, as the day has it."""

    def __init__(self, shape: Shape, choice: Choice) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.width, dtype=choice.dtype))
        self.unit_offset, self.epsilon, self.day = shape.unit_offset, shape.epsilon, choice.day

    def forward(self, values: Tensor) -> Tensor:
        dtype = values.dtype
        if self.day >= HALF_PRECISION_FIXED:
            values = values.float()
        mean = torch.mean(values * values, dim=-1, keepdim=True)
        normed = values * torch.rsqrt(mean + self.epsilon)
        if self.day >= PRODUCT_IN_HALF:
            normed = normed.to(dtype)
            return normed * (1 + self.weight) if self.unit_offset else normed * self.weight
        return (self.weight * normed).to(dtype)


def _norm(shape: Shape, choice: Choice) -> nn.Module:
    if shape.norm == "rms":
        return RmsNorm(shape, choice)
    return nn.LayerNorm(shape.width, eps=shape.epsilon, dtype=choice.dtype)


class Attention(nn.Module):
    """model.py, CausalSelfAttention."""

    def __init__(self, shape: Shape, choice: Choice, place: int) -> None:
        """Build both layers; every ``slides``-th of the model's layers attends within a window."""
        super().__init__()
        self.slides = shape.slides > 0 and place % shape.slides == 0
        self.shape, self.day = shape, choice.day
        self.attn = FusedQkv(shape, choice)
        self.proj = Adapted(shape.heads * shape.head_width, shape.width, choice, bias=shape.bias)

    def forward(self, values: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        rows, tokens, _ = values.shape
        shape = self.shape
        each = shape.heads // shape.groups
        fused = self.attn(values).view(rows, tokens, shape.groups, each + 2, shape.head_width)
        query, key, value = fused.permute(0, 2, 3, 1, 4).split((each, 1, 1), dim=2)
        if each > 1 and (shape.groups > 1 or self.day >= HALF_PRECISION_FIXED):
            wide = rows, shape.groups, each, tokens, shape.head_width
            key, value = key.expand(wide), value.expand(wide)
        query, key, value = (part.reshape(rows, -1, tokens, shape.head_width) for part in (query, key, value))
        turned = shape.rotary_width
        turned_query = _rotated(query[..., :turned], cosines, sines)
        turned_key = _rotated(key[..., :turned], cosines, sines)
        query = torch.cat((turned_query, query[..., turned:]), dim=-1)
        key = torch.cat((turned_key, key[..., turned:]), dim=-1)
        mask = _causal_mask(query) if self.slides else None
        if mask is not None:
            window = torch.ones_like(mask).tril(diagonal=-tokens)
            window.masked_fill_(window.bool(), float("-inf"))
            mask += window
        scale = shape.head_width**-0.5
        if shape.capped:
            scores = query @ key.mT * scale
            scores = torch.tanh(scores / 50.0) * 50.0
            scores = scores + (_causal_mask(query) if mask is None else mask)
            scores = functional.softmax(scores, dim=-1, dtype=torch.float).to(dtype=query.dtype)
            attended = scores @ value
        else:
            attended = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale
            )
        attended = attended.transpose(1, 2).reshape(rows, tokens, shape.heads * shape.head_width)
        projected: Tensor = self.proj(attended)
        return projected


def _causal_mask(query: Tensor) -> Tensor:
    tokens = query.shape[2]
    mask = torch.ones(tokens, tokens, dtype=query.dtype, device=query.device).triu(diagonal=1)
    return mask.masked_fill_(mask.bool(), float("-inf"))


def _rotated(values: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = values[..., : values.shape[-1] // 2], values[..., values.shape[-1] // 2 :]
    rotated = torch.cat((-second, first), dim=-1)
    return (values * cosines + rotated * sines).to(values.dtype)


class Mlp(nn.Module):
    """model.py, LLaMAMLP and GemmaMLP with a gate, GptNeoxMLP without."""

    def __init__(self, shape: Shape, choice: Choice) -> None:
        super().__init__()
        self.act = functional.silu if shape.mlp == "silu" else functional.gelu
        self.fc_1 = Adapted(shape.width, shape.inner, choice, bias=shape.bias)
        self.fc_2 = Adapted(shape.width, shape.inner, choice, bias=shape.bias) if shape.mlp else None
        self.proj = Adapted(shape.inner, shape.width, choice, bias=shape.bias)

    def forward(self, values: Tensor) -> Tensor:
        if self.fc_2 is None:
            values = self.fc_1(values)
            values = self.act(values)
            projected: Tensor = self.proj(values)
            return projected
        gate, up = self.fc_1(values), self.fc_2(values)
        values = self.act(gate) * up
        gated: Tensor = self.proj(values)
        return gated


class Block(nn.Module):
    """model.py, Block."""

    def __init__(self, shape: Shape, choice: Choice, place: int) -> None:
        super().__init__()
        self.norm_1 = _norm(shape, choice)
        self.attn = Attention(shape, choice, place)
        self.norm_2 = None if shape.shared_norm else _norm(shape, choice)
        self.mlp = Mlp(shape, choice)
        self.after_attention = _norm(shape, choice) if shape.post_norms else nn.Identity()
        self.after_mlp = _norm(shape, choice) if shape.post_norms else nn.Identity()
        self.parallel, self.adds_last = shape.parallel, choice.day >= HALF_PRECISION_FIXED

    def forward(self, values: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        normed = self.norm_1(values)
        attended = self.attn(normed, cosines, sines)
        attended = self.after_attention(attended)
        if not self.parallel:
            values = attended + values
            return self.after_mlp(self.mlp(self.norm_2(values))) + values  # type: ignore[misc,no-any-return]  # never shared
        if self.adds_last:
            normed = normed if self.norm_2 is None else self.norm_2(values)
            return self.mlp(normed) + attended + values  # type: ignore[no-any-return]  # of tensors
        second = normed if self.norm_2 is None else self.norm_2(values)
        return values + attended + self.mlp(second)  # type: ignore[no-any-return]  # of tensors


class GPT(nn.Module):
    """model.py and lora.py, GPT; called as a model of transformers is, for the loss to be made in chunks."""

    def __init__(self, shape: Shape, choice: Choice, config: Any, tokens: int) -> None:
        """Build the model for so many positions, after which litgpt makes its rotations anew in fp32."""
        super().__init__()
        self.config = config
        self.lm_head = Adapted(shape.width, shape.vocabulary, choice, bias=shape.head_bias)
        wte = nn.Embedding(shape.vocabulary, shape.width, dtype=choice.dtype)
        layers: Any = nn.ModuleList(Block(shape, choice, place) for place in range(shape.layers))
        self.transformer: Any = nn.ModuleDict({"wte": wte, "h": layers, "ln_f": _norm(shape, choice)})
        for name in ("cos", "sin"):
            angles = torch.empty(tokens, shape.rotary_width, dtype=torch.float32)
            self.register_buffer(name, angles, persistent=False)
        self.scale = shape.width**0.5 if shape.scaled else 1.0

    def adapt(self, parts: Collection[str]) -> None:
        """Freeze the model and add its adapters (lora.py, mark_only_lora_as_trainable)."""
        self.requires_grad_(requires_grad=False)
        own: dict[str, list[nn.Module]] = {"projection": [], "mlp": [], "head": [self.lm_head]}
        for block in self.transformer["h"]:
            block.attn.attn.adapt_parts(parts)
            own["projection"].append(block.attn.proj)
            own["mlp"] += [layer for layer in block.mlp.children() if isinstance(layer, Adapted)]
        for layer in (layer for part, layers in own.items() if part in parts for layer in layers):
            layer.adapt(1, layer.outputs)  # type: ignore[operator]  # all of them are Adapted

    def get_output_embeddings(self) -> nn.Module:
        """Return what is applied in chunks."""
        return self.lm_head

    def forward(self, input_ids: Tensor, **_of_transformers: object) -> Any:
        """Return logits; masks and caches are not for litgpt's models."""
        tokens = input_ids.shape[1]
        cosines, sines = self.cos[:tokens], self.sin[:tokens]  # type: ignore[index]  # buffers
        values = self.transformer["wte"](input_ids)
        if self.scale != 1:
            values = values * self.scale
        for block in self.transformer["h"]:
            values = block(values, cosines, sines)
        values = self.transformer["ln_f"](values)
        return SimpleNamespace(logits=self.lm_head(values))
