"""Saving a tree as a checkpoint, restoring it, and copying checkpoints."""
