"""The participant's disk. No other room of the participant writes to it."""
