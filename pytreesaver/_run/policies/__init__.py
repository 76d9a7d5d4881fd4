"""Retention policies and save schedules: which checkpoints to keep, and when to save. Pure functions."""
