"""Records: what was measured, how it is sealed on disk, and how a tactic is chosen from it."""
