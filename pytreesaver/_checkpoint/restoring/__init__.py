"""From a checkpoint to a tree, with a template or without."""
