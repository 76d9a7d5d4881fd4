"""Checksums of the bytes of files."""
