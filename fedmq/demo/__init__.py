"""The demo: its federation and its data."""
