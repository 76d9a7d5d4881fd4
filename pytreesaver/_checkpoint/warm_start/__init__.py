"""TensorFlow's ways to initialize part of a tree from a checkpoint."""
