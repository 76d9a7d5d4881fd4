"""``pytreesaver prune``."""

from cli.running import remaining_steps, save_run


def test_prune_deletes_only_with_yes(call):
    save_run()
    policy = ["--keep-last", "1", "--keep-every-steps", "3"]
    dry = call("prune", "run", *policy)
    assert remaining_steps() == [0, 1, 2, 3, 4]
    assert dry.out.count("would be deleted") == 2
    result = call("prune", "run", *policy, "--yes")
    assert remaining_steps() == [0, 3, 4]
    assert result.out.splitlines()[-1].startswith("deleted 2 checkpoints, ")
    assert call("prune", "run", *policy, "-y").out.splitlines()[-1] == "deleted 0 checkpoints, 0 B"


def test_prune_without_a_policy_uses_the_recorded_one(call):
    save_run()
    assert "would delete 0 checkpoints" in call("prune", "run").out
