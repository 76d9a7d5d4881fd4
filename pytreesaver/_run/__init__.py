"""A run directory: its state file, its checkpoints, and which of them are kept."""
