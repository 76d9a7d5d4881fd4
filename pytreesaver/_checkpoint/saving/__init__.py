"""Saving a checkpoint: from a tree to a format."""
