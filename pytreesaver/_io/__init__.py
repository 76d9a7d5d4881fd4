"""File I/O: atomic commits, parallel reads and writes, checksums. Independent of trees."""
