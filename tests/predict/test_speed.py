"""Predicted speed: kernels by hand arithmetic, the same calls from any trace, bands, and what is refused."""

from typing import Any

import pytest
import torch

from bench.predict.predict import predict
from bench.predict.speed.kernels import Rates, constants, least_seconds, rates_of, time_of, work_of
from bench.predict.trace.calls import Call, Form, Part
from bench.records.predictions import Speed
from bench.scenario.catalogue import card
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from bench.scenario.types import LoraMethod, ModelSpec
from tiny_cells import tiny_cell

A100 = card("a100-80gb-sxm")
AMPERE = Platform(capability=(8, 0))


def called(op: str, *shapes: tuple[int, ...], dtype: torch.dtype = torch.bfloat16, **more: Any) -> Call:
    """Return a call on dense tensors of one dtype, the last of which is its result."""
    parts = [Part(dtype, (False,) * len(shape), dense=True, on_host=False) for shape in shapes]
    form = Form("forward", False, op, "model", False, tuple(parts[:-1]), tuple(parts[-1:]), **more)  # noqa: FBT003 - a record
    return Call(form, list(zip(parts, shapes, strict=True)), 1)


def rates() -> Rates:
    """Return what an A100 does in a second."""
    found = rates_of(A100)
    assert found is not None
    return found


def test_product_takes_whole_waves_of_tiles() -> None:
    """A product of 4096 by 4096 by 4096 is 512 tiles of 256 by 128: five waves over 108 multiprocessors."""
    time = time_of(work_of(called("aten::mm", (4096, 4096), (4096, 4096), (4096, 4096))), rates())

    flops = 5 * 108 * 2 * 256 * 128 * (4096 + 128)
    assert time.seconds == pytest.approx(flops / (0.869 * 312e12) + 3e-6)
    assert time.computing


def test_thin_fp32_product_runs_on_cuda_cores() -> None:
    """A rank-16 product in fp32 fills 128 tiles of 128 by 32, so two waves, at 0.85 of 19.5 TFLOP/s."""
    size = (16384, 4096), (4096, 16), (16384, 16)
    time = time_of(work_of(called("aten::mm", *size, dtype=torch.float32)), rates())

    loading = 16 * (0.85 * 19.5) / (0.869 * 312)
    cost = (1 + loading * (1 / 128 + 1 / 32)) / (1 + loading * (1 / 256 + 1 / 128))
    flops = 2 * 108 * 2 * 128 * 32 * (4096 + 128)
    assert time.seconds <= flops * cost / (0.85 * 19.5e12) + 3e-6
    assert time.seconds > 2 * 16384 * 4096 * 16 / (0.85 * 19.5e12)


def test_causal_flash_attention_computes_a_half() -> None:
    """Forward of causal flash attention is 2·B·H·S²·D FLOPs at 0.73 of the peak, less for short sequences."""
    shape = (4, 32, 4096, 128)
    call = called("aten::_scaled_dot_product_flash_attention", shape, shape, shape, shape, flags=(True,))

    flops = 2 * 4 * 32 * 4096**2 * 128
    share = 0.73 * 4096 / (4096 + 450)
    assert work_of(call).flops == flops
    assert time_of(work_of(call), rates()).seconds == pytest.approx(flops / (share * 312e12) + 3e-6)


def test_flash_attention_is_as_fast_on_an_h100_as_was_published() -> None:
    """Without Hopper's own instructions: 335 TFLOP/s both ways (FlashAttention-2, section 4.1), of 989."""
    shape, op = (1, 16, 16384, 128), "aten::_scaled_dot_product_flash_attention"
    works = work_of(called(op, *[shape] * 4)), work_of(called(f"{op}_backward", *[shape] * 6))
    h100 = rates_of(card("h100-80gb"))
    assert h100 is not None
    seconds = sum(time_of(work, h100).seconds for work in works)
    assert sum(work.flops for work in works) / seconds == pytest.approx(335e12, rel=0.05)


def test_a_linear_layer_is_as_fast_on_an_rtx_4090_as_was_published() -> None:
    """Two times 4096 tokens by 4096 by 4096 in fp16: 167 TFLOP/s by torch (aredden/torch-cublas-hgemm)."""
    work = work_of(called("aten::mm", (8192, 4096), (4096, 4096), (8192, 4096), dtype=torch.float16))
    rtx4090 = rates_of(card("rtx4090"))
    assert rtx4090 is not None
    assert work.flops / time_of(work, rtx4090).seconds == pytest.approx(167e12, rel=0.1)


def test_attention_in_fp32_takes_three_products_in_tf32() -> None:
    """On tensor cores, at half of bf16's peak each: six times as long, not the sixteen of CUDA cores."""
    shape = (4, 32, 4096, 128)
    op, dtypes = "aten::_scaled_dot_product_efficient_attention", (torch.bfloat16, torch.float32)
    half, full = (time_of(work_of(called(op, *([shape] * 4), dtype=one)), rates()) for one in dtypes)
    assert full.seconds - 3e-6 == pytest.approx(6 * (half.seconds - 3e-6))


def test_elementwise_kernel_moves_its_bytes() -> None:
    """A sum of two dense tensors moves three times their bytes at 0.87 of the bandwidth."""
    shape = (4, 4096, 4096)
    time = time_of(work_of(called("aten::add", shape, shape, shape)), rates())

    moved = 3 * 2 * 4 * 4096 * 4096
    assert time.seconds == pytest.approx(moved / (0.87 * 2039e9) + 3e-6)
    assert not time.computing


def test_cast_is_bound_by_the_multiprocessors() -> None:
    """A cast moves 7.6 bytes for each cycle of each multiprocessor, less than the memory could."""
    shape = (4, 4096, 4096)
    call = called("aten::_to_copy", shape, shape)

    assert time_of(work_of(call), rates()).seconds == pytest.approx(
        2 * 2 * 4 * 4096 * 4096 / (7.6 * 108 * 1.41e9) + 3e-6
    )


def test_small_tensor_comes_from_the_cache() -> None:
    """Six MiB are in the L40S's L2 cache of 48, four times as fast as its memory."""
    l40s = rates_of(card("l40s"))
    assert l40s is not None
    small, large = (
        time_of(work_of(called("aten::add", (size,), (size,), (size,))), l40s).seconds - 3e-6
        for size in (1 << 20, 1 << 26)
    )

    assert 4 * 64 * small < large < 6 * 64 * small


def test_rmsnorm_takes_as_long_as_liger_measured() -> None:
    """The kernels of transformers' RMSNorm take the 1.93 ms and 0.61 ms that Liger's benchmarks measured."""
    nvl = A100.model_copy(
        update={
            "bandwidth_bytes_per_s": 3938e9,
            "speed": A100.speed and A100.speed.model_copy(update={"multiprocessors": 132, "clock_mhz": 1785}),
        }
    )
    pcie = card("a100-80gb")

    def seconds(width: int, on: Any) -> float:
        full, row = (2048, width), (2048, 1)
        steps = [
            ("_to_copy", full, full, (torch.bfloat16, torch.float32)),
            ("pow", full, full, (torch.float32, torch.float32)),
            ("mean", full, row, (torch.float32, torch.float32)),
            ("mul", full, full, (torch.float32, torch.float32)),
            ("_to_copy", full, full, (torch.float32, torch.bfloat16)),
            ("mul", full, full, (torch.bfloat16, torch.bfloat16)),
        ]
        total = 0.0
        for op, given, made, (read, written) in steps:
            parts = [Part(read, (False, False), True, False), Part(written, (False, False), True, False)]  # noqa: FBT003 - records
            shapes = [(parts[0], given), (parts[1], made)]
            inputs = parts[:1]
            if op == "mul":  # by a column, or by a row
                extra = Part(read, (False, False), True, False)  # noqa: FBT003 - the same
                inputs, shapes = [parts[0], extra], [shapes[0], (extra, row), shapes[1]]
            form = Form("forward", False, f"aten::{op}", "norm", False, tuple(inputs), (parts[1],))  # noqa: FBT003 - the same
            found = rates_of(on)
            assert found is not None
            total += time_of(work_of(Call(form, shapes, 1)), found).seconds
        return total

    assert seconds(32768, pcie) == pytest.approx(1.9333e-3, rel=0.03)
    assert seconds(16384, nvl) == pytest.approx(0.6095e-3, rel=0.05)


def cell(**changes: Any) -> Cell:
    """Return LoRA on a tiny Llama for CUDA."""
    size = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6, "vocab_size": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    model = ModelSpec(name="m", random="llama-2-7b", overrides=size | heads)
    method = LoraMethod(target_modules="all-linear").model_dump()
    data = {"source": "synthetic", "attention_mask": "ones"}
    fields: dict[str, Any] = {"device": "cuda", "model": model, "method": method, "data": data}
    return tiny_cell(**fields | changes)


def told(one: Cell, *names: str) -> list[Speed]:
    """Return the speeds that are predicted for a cell on cards."""
    return list(predict(one, AMPERE, cards=[card(name) for name in names]).speeds)


def test_a_prediction_tells_speed_with_its_band() -> None:
    """Of each card asked for: a band around the point, shares that sum to one, five dear operators."""
    known, other, sibling, without = told(cell(), "a100-80gb-sxm", "a100-40gb", "a100-80gb", "rtx3060-12gb")

    assert known.low < known.point < known.high
    assert sum(known.shares.values()) == pytest.approx(1)
    assert len(known.dearest) == 5
    assert known.bound_by == "host"  # so small a model
    assert other.high / other.low >= known.high / known.low
    assert other.assumed.endswith("as wide as cards differ")
    assert sibling.assumed.endswith("as wide as cards differ; a100-80gb-sxm has its own")
    assert not known.assumed
    assert without.refused
    assert (without.low, without.high) == (0, 0)


def test_a_larger_batch_is_bound_by_the_gpu_and_trains_faster() -> None:
    """Of 64 times as many tokens more are trained on in a second."""
    training = {"sequence_length": 4096, "micro_batch": 64, "attention": "flash_attention_2"}
    small, large = (told(one, "a100-80gb-sxm")[0] for one in (cell(), cell(training=training)))

    assert large.bound_by != "host"
    assert large.point > 10 * small.point


def test_checkpointing_recomputes_and_does_not_count() -> None:
    """Recomputation takes time, and no FLOPs of the model: MFU falls as the speed does."""
    training = {"sequence_length": 4096, "micro_batch": 64, "attention": "flash_attention_2"}
    free, checkpointed = (
        told(cell(training=training | {"gradient_checkpointing": kind}), "a100-80gb-sxm")[0]
        for kind in ("off", "non-reentrant")
    )

    assert checkpointed.point < free.point
    assert checkpointed.mfu / free.mfu == pytest.approx(checkpointed.point / free.point, rel=0.01)


@pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension")
@pytest.mark.filterwarnings("ignore:Setting boft_n_butterfly_factor")
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"method": {"kind": "peft", "type": "boft"}}, "BOFT"),
        ({"training": {"sequence_length": 64, "kernels": "liger"}}, "liger"),
    ],
)
def test_hidden_kernels_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    """Where kernels hide in one operator no speed is told, and the sentence names them."""
    (speed,) = told(cell(**changes), "a100-80gb-sxm")

    assert named in speed.refused
    assert speed.point == 0


def test_roofline_is_what_the_data_sheet_allows() -> None:
    """A square product takes its FLOPs at 312 TFLOP/s, at 19.5 in fp32; a sum its bytes at 2,039 GB/s."""
    square = [(4096, 4096)] * 3
    flops, moved = 2 * 4096**3, 3 * 2 * 4096**2
    assert least_seconds(work_of(called("aten::mm", *square)), A100) == pytest.approx(flops / 312e12)
    wide = work_of(called("aten::mm", *square, dtype=torch.float32))
    assert least_seconds(wide, A100) == pytest.approx(flops / 19.5e12)
    assert least_seconds(work_of(called("aten::add", *square)), A100) == pytest.approx(moved / 2039e9)


def test_no_speed_is_above_its_roofline() -> None:
    """Launches, tiles and the host are what a step loses, a small one nearly all of it."""
    training = {"sequence_length": 4096, "micro_batch": 64, "attention": "flash_attention_2"}
    small, large = (told(one, "a100-80gb-sxm")[0] for one in (cell(), cell(training=training)))
    assert small.point < 0.1 * small.roofline
    assert 0.3 * large.roofline < large.point < large.roofline


def test_attention_in_fp32_widens_the_band_and_says_so() -> None:
    """No training run with it was at hand: preparation for k-bit training makes hidden states fp32."""
    size = {"sequence_length": 2048, "micro_batch": 16}
    cells = (cell(training=size | {"dtype": dtype}) for dtype in ("fp32", "bf16"))
    fp32, half = (told(one, "a100-80gb-sxm")[0] for one in cells)
    assert fp32.high / fp32.low > 1.9
    assert half.high / half.low < 1.8
    assert "attention runs in fp32" in fp32.assumed
    assert "" == half.assumed


def test_no_speed_unless_cards_are_asked_for() -> None:
    """A prediction for no card, or for the CPU, tells no speed."""
    assert predict(cell(), AMPERE).speeds == ()
    cpu = Platform(device="cpu")
    assert predict(cell(device="cpu"), cpu, cards=[A100]).speeds == ()


def test_a_card_on_a_module_is_told_from_one_in_a_slot() -> None:
    """A100-SXM4-80GB has another bandwidth than the A100 of 80 GB on PCIe."""
    assert card("A100-SXM4-80GB").name == "a100-80gb-sxm"
    assert card("NVIDIA A100 80GB PCIe").name == "a100-80gb"


def test_each_constant_has_its_source() -> None:
    """Constants of kernels stand beside the source that they were read in, or are called assumed."""
    for name in ("product", "attention", "memory"):
        table = constants()[name]
        sourced = {
            key.removesuffix("_source") for key, text in table.items() if key.endswith("_source") and text
        }
        assert sourced == {key for key in table if not key.endswith("_source")}, name
    for had in constants()["calibration"]["cards"].values():
        assert had["rows"]
        assert had["band"] > 1
