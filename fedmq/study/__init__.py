"""The study's file, and studies of an app or of a recorded run."""
