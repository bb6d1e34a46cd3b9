"""Run the window for each cell on standard input, one a line, and print its ledger, one a line."""

import gc
import sys

import msgspec

import bench.training.preload  # noqa: F401 - without torch's compiler
from bench.records.records import LedgerReading
from bench.scenario.cell import Cell
from tiny_cells import of_type, readings_of

if __name__ == "__main__":
    gc.collect()
    gc.freeze()  # each ledger looks through all objects, and imports have made half a million
    for line in sys.stdin:
        (reading,) = of_type(readings_of(Cell.model_validate_json(line)), LedgerReading)
        sys.stdout.write(msgspec.json.encode(reading).decode() + "\n")
