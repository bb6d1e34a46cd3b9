"""For pytest: each cell of a scenario a test, judged against a baseline. Does nothing unless asked to."""
