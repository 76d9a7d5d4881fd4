"""Readers that several formats share: of several checkpoints as one, and of whole arrays."""
