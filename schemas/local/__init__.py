"""The machine under both roles: files, clocks, memory, the log, and waiting before another try."""
