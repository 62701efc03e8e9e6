"""Leading: which coordinator of a run is the active one, and what happened while there was none."""
