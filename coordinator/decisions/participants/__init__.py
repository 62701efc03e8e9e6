"""Participants: who is known, who is free, who gets a slot, and who waits for whom."""
