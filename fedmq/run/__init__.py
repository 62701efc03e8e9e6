"""Running coordinators and participants, put together from a federation file."""
