"""The mathematics of the big batch: plain PyTorch, no host."""
