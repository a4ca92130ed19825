"""Everything that BasicSR sees."""
