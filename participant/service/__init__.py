"""The participant's loop, and its messages to and from the broker."""
