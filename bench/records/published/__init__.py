"""Predicted memory beside published measurements: the rows, their scores. Predicts nothing itself."""
