"""Files, clocks and memory of this machine. No message is in here."""
