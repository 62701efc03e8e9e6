"""The demo: its federation, its data and its screen."""
