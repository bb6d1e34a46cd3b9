"""Measure and predict the memory, speed and accuracy of fine-tuning. Importing this does nothing else."""
