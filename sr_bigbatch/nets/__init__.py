"""Networks in plain PyTorch whose state-dict keys are those of the hosts."""
