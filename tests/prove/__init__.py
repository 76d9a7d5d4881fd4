"""Proof of what docs/reliability.md promises: campaigns that try every fault at every point, and count what held."""
