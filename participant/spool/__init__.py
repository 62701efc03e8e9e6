"""The participant's disk. No other room of it writes there."""
