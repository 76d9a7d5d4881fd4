"""Saves that are written elsewhere first: into a temporary directory, or in the native format."""
