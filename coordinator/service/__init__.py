"""The coordinator's loop. This is the only room of it with threads and acks."""
