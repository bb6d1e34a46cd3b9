"""What was measured: the record schema, the store, the table and the environment's fingerprint."""
