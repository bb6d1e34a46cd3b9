"""The training window, and all it is made of: models, methods, optimizers, data, evaluation."""
