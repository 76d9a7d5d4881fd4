"""Pure decisions: which checkpoints to keep, and when to save."""
