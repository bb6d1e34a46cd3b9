"""Run the window for the cell on standard input and print its ledger as JSON."""

import sys

from bench.results.records import LedgerReading
from bench.spec.types import Cell
from tiny_cells import of_type, readings_of

if __name__ == "__main__":
    (reading,) = of_type(readings_of(Cell.model_validate_json(sys.stdin.read())), LedgerReading)
    sys.stdout.write(reading.model_dump_json())
