"""Checks of the options before a training starts."""
