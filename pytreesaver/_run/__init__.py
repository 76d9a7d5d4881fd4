"""Run directories: their state files, their checkpoints, and retention."""
