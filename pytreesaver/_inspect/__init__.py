"""Inspection of checkpoints and runs: variables, statistics, differences, reports."""
