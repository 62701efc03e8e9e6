"""Incoming: from a delivery to the event that the core gets."""
