"""A traced window as arrays: which block is allocated or freed when, and what each block is."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.predict.allocator.replay import ReplayVariability
from bench.predict.trace.calls import Calls
from bench.predict.trace.kernels import ScratchCall
from bench.predict.trace.meta_ledger import NO_LAYER, Mark, MetaLedger
from bench.probes.ledger import BEFORE
from bench.probes.tensors import Block, by_module
from bench.records.readings import ModuleBytes
from bench.training.weights_reached import Reached

Ints = NDArray[np.int64]
WARM_UP = "loader's warm-up"


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A window's memory events in order.

    ``events[i]`` is the number of a block: at its first appearance it is born, at its second it dies.
    ``sizes[b]`` are the bytes that block ``b`` asks for. ``kinds[b]`` is the block that ``blocks`` describes:
    a repeated layer's blocks are described once.
    """

    events: Ints
    born: NDArray[np.bool_]
    sizes: Ints
    kinds: Ints
    layers: Ints
    blocks: Sequence[Block]
    marks: Sequence[Mark]
    cache_emptied_at: Sequence[int]
    layer_of_entry: Ints
    scratch_calls: Sequence[ScratchCall] = ()
    paged_bytes: int = 0
    asked: Sequence[str] = ()  # lines that asked for values
    reached: Reached | None = None  # by the method
    computed: Ints = field(default_factory=lambda: np.zeros((1, 2), dtype=np.int64))
    """Operators and FLOPs before each event, and in the end."""
    flops_known: bool = True  # not where a stream was made from those of other batches
    calls: Sequence[Calls] = ()  # of operators, in each step; none where their sizes are not known
    streams: Ints | None = None  # on which each block is made, where there are several of CUDA's
    uneven: bool = False  # whether other ranks hold shards of other sizes
    host_bytes: int = 0  # the most that is offloaded at a time
    reset_at: int = 0  # the event after which the peak counters begin anew

    def during(self, first: int, last: int) -> "Stream":
        """Return what counters see that are reset before a step and read after another, both from 1.

        With ``first`` 0 they are never reset. Steps beyond those of the stream are like its last one.
        """
        end = next((mark.entries for mark in self.marks if mark.step >= last), len(self.events))
        marks = tuple(mark for mark in self.marks if mark.step < last)
        begun = [mark for mark in marks if mark.phase not in ("load", "adapt") and mark.step < first]
        return replace(
            self,
            events=self.events[:end],
            born=self.born[:end],
            layer_of_entry=self.layer_of_entry[:end],
            computed=self.computed[: end + 1],
            marks=marks,
            cache_emptied_at=tuple(place for place in self.cache_emptied_at if place <= end),
            # A counter that is reset begins with what is held then: after the event before the step.
            reset_at=next((max(mark.entries - 1, 0) for mark in begun if mark.step == begun[-1].step), 0),
        )

    def live_bytes(self) -> Ints:
        """Return the bytes asked for and not yet given back, after each event."""
        changes: Ints = np.where(self.born, self.sizes[self.events], -self.sizes[self.events])
        return changes.cumsum()

    def live_at(self, event: int) -> Ints:
        """Return the blocks that live after so many events."""
        return np.flatnonzero(np.bincount(self.events[:event], minlength=1) == 1)

    def variability(self) -> ReplayVariability:
        """Return what of the stream reality may do otherwise: the order of the weights, the warm-up's size.

        Weights that are quantised while loading come one after the other, so their order is given.
        """
        parts = spans(self.marks, len(self.events))
        loading = next((part for mark, part in parts if mark.phase == "load"), range(0))
        ops = {index: self.blocks[self.kinds[self.events[index]]].op for index in loading}
        first = [index for index, op in ops.items() if self.born[index] and op == BEFORE]
        warm_up = next((int(self.events[index]) for index, op in ops.items() if op == WARM_UP), None)
        given = self.streams is not None  # sharding goes layer by layer
        ordered = given or not first or any(op.startswith("bitsandbytes::") for op in ops.values())
        weights = [] if ordered else list(pairwise([*first, loading.stop]))
        return ReplayVariability(weights=weights, warm_up=warm_up)

    @property
    def ops_of_step(self) -> int:
        """How many operators the last step has."""
        return int(self._of_step[0])

    @property
    def flops_of_step(self) -> int | None:
        """How many FLOPs the last step has, where that is known."""
        return int(self._of_step[1]) if self.flops_known else None

    @property
    def _of_step(self) -> Ints:
        start = next(mark.entries for mark in self.marks if mark.step == self.marks[-1].step)
        whole: Ints = self.computed[-1] - self.computed[start]
        return whole

    def saved_bytes(self) -> int:
        """Return the most that a forward pass leaves alive for the backward pass, logits left out."""
        saved = np.array(
            [one.born_phase == "forward" and one.category is None for one in self.blocks], dtype=np.bool_
        )
        of_blocks = saved[self.kinds] * self.sizes
        starts = [mark.entries for mark in self.marks if mark.phase == "backward"]
        return max((int(of_blocks[self.live_at(start)].sum()) for start in starts), default=0)

    def modules(self, blocks: Ints) -> ModuleBytes:
        kinds, which = np.unique(self.kinds[blocks], return_inverse=True)
        bytes_by_kind = np.zeros(len(kinds), dtype=np.int64)
        np.add.at(bytes_by_kind, which, self.sizes[blocks])
        return by_module(zip((self.blocks[kind] for kind in kinds), bytes_by_kind.tolist(), strict=True))

    def module_of(self, block: int) -> str:
        """Name the module in which a block was born."""
        module = str(self.blocks[self.kinds[block]].module)
        layer = int(self.layers[block])
        if layer == NO_LAYER:
            return module
        parts = module.split(".")
        index = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
        return module if index is None else ".".join([*parts[:index], str(layer), *parts[index + 1 :]])


def spans(marks: Sequence[Mark], end: int) -> Iterator[tuple[Mark, range]]:
    """Yield each mark with the events of its phase, up to ``end`` of them."""
    stops = [*(mark.entries for mark in marks[1:]), end]
    for mark, stop in zip(marks, stops, strict=True):
        yield mark, range(mark.entries, stop)


def stream_of(
    ledger: MetaLedger,
    *,
    paged_bytes: int = 0,
    asked: Iterable[str] = (),
    reached: Reached | None = None,
    uneven: bool = False,
) -> Stream:
    """Return the books of a closed ledger as arrays."""
    entries, blocks = ledger.entries, ledger.blocks
    streams = np.array(ledger.stream_of_block, dtype=np.int64)
    return Stream(
        events=np.array([entry.block for entry in entries], dtype=np.int64),
        born=np.array([entry.born for entry in entries], dtype=np.bool_),
        sizes=np.array([block.nbytes for block in blocks], dtype=np.int64),
        kinds=np.arange(len(blocks), dtype=np.int64),
        layers=np.array(ledger.layer_of_block, dtype=np.int64),
        blocks=blocks,
        marks=tuple(ledger.marks),
        cache_emptied_at=tuple(ledger.cache_emptied_at),
        layer_of_entry=_filled_in(ledger),
        scratch_calls=tuple(ledger.scratch_calls),
        paged_bytes=paged_bytes,
        asked=sorted(asked),
        reached=reached,
        computed=np.array([*ledger.computed_before, ledger.computed], dtype=np.int64),
        calls=ledger.recorder.calls,
        streams=streams if streams.any() else None,
        uneven=uneven,
        host_bytes=ledger.most_host_bytes,
    )


def _filled_in(ledger: MetaLedger) -> Ints:
    """Return the layer of each entry.

    While a model is adapted the layer at work is known only as adapters are made; elsewhere it is that of
    the next block that turned out to belong to one.
    """
    layers = np.array(ledger.layer_of_entry, dtype=np.int64)
    for mark, part in spans(ledger.marks, len(layers)):
        if mark.phase != "adapt":
            continue
        upcoming: Any = NO_LAYER
        for position in reversed(part):
            entry = ledger.entries[position]
            if entry.born and ledger.layer_of_block[entry.block] != NO_LAYER:
                upcoming = ledger.layer_of_block[entry.block]
            if layers[position] == NO_LAYER:
                layers[position] = upcoming
    return layers
