"""`Saver` and `CheckpointManager`, the objects that keep state between saves."""
