"""pytreesaver beside its peers and beside what the disk and the memory can do, measured in one run."""
