"""Bytes on disk: files, atomic commits, parallel reads and writes, checksums. Knows nothing of trees."""
