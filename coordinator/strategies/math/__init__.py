"""Arithmetic that strategies share. Nothing here keeps state."""
