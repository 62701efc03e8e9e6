"""This machine: its files, clocks, memory and log. No message is in here."""
