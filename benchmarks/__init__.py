"""Benchmarks of pytreesaver against its peers and against a raw read/write loop, measured in one run."""
