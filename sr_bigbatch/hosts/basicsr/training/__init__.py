"""A BasicSR training from its data to its pictures."""
