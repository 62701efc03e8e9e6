"""The participant's decision machine. It is pure: no clock, disk, broker, thread or log."""
