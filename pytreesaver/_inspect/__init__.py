"""Looking into checkpoints and runs: variables, statistics, differences, reports."""
