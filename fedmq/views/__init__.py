"""Screens, plots and checks for people."""
