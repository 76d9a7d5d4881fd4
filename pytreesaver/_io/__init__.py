"""Bytes on disk: files, durable and atomic commits, parallel reads and writes, checksums. Knows nothing of trees."""
