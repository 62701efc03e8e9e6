"""The commands, one module each. The command line calls its function `command`."""
