"""Checks of a run. They read its state and change nothing."""
