"""The commands, one module each: `command` is what the command line calls."""
