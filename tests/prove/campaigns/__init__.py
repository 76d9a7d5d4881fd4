"""Campaigns: each tries one kind of fault wherever it can happen."""
