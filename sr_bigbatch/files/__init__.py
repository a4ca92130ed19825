"""Saved files: written whole, read without trust."""
