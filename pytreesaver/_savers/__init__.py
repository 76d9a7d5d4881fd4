"""The two objects that keep state between saves: `Saver` and `CheckpointManager`."""
