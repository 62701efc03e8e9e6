"""Commits: what the core's commands do, first to the disk and then to the broker."""
