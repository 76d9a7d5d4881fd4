"""Functions beside the weights that they need: what a checkpoint says about them, exporting and loading."""
