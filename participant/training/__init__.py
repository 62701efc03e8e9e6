"""Training a task, on a thread of its own."""
