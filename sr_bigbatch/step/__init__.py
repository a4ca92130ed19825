"""The exact step: one update from a batch of any size. Plain PyTorch."""
