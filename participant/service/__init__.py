"""The participant's loop, and what goes to the broker and comes from it."""
