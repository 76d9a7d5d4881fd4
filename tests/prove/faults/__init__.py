"""Faults of one call of the C library, in a process of its own."""
