"""How much memory a step takes, and how much there is."""
