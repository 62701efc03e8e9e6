"""The event heap that drives the coordinator's own core in virtual time."""
