"""Commands that are too long for ``bench/cli.py``: each parses, calls and prints. Nothing heavy at start."""
