"""Saving trees as checkpoints, restoring them, and copying checkpoints."""
