"""Models and data that a study trains."""
