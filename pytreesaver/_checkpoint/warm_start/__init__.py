"""Initializing part of a tree from a checkpoint, with the functions of TensorFlow."""
