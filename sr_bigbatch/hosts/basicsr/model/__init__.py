"""Our models and what they save."""
