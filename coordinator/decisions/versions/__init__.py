"""Versions: the model in the making, and what decides when the next version is due."""
