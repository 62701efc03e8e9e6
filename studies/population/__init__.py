"""Participants of a study: their speed, availability, data and dropouts."""
