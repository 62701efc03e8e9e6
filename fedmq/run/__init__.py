"""Coordinators and participants, put together from a federation file and run."""
