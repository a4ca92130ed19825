"""Crops, discriminators and batches that grow during a run."""
