"""Restoring a checkpoint into a tree, with or without a template."""
