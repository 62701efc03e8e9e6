"""The study's file, and how an app or a recorded run becomes a study."""
