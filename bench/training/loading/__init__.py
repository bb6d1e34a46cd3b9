"""Models: which class is built, from what weights, how a checkpoint stores them, and what it can take."""
