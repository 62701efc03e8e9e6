"""State that strategies share: buffers, counts and arrays of each participant."""
