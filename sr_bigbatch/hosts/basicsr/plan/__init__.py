"""How a BasicSR training cuts its batch."""
