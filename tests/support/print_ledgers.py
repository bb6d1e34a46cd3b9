"""Run the window for each cell on standard input, one a line, and print its ledger, one a line."""

import sys

import msgspec

from bench.records.records import LedgerReading
from bench.scenario.cell import Cell
from tiny_cells import of_type, readings_of

if __name__ == "__main__":
    for line in sys.stdin:
        (reading,) = of_type(readings_of(Cell.model_validate_json(line)), LedgerReading)
        sys.stdout.write(msgspec.json.encode(reading).decode() + "\n")
