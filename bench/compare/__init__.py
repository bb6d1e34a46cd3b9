"""What the records say: summaries, paired accuracy. Reads records, never runs anything."""
