"""Tasks: the open ones, and the ids of all."""
