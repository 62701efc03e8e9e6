"""The decision core. It is pure: no clock, disk, broker, thread or log."""
