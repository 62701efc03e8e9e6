"""Screens, plots and checks that people look at."""
