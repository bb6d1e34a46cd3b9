"""How long a step takes on a card, from the operators that its trace saw."""
