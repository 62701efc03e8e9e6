"""The user's app file, and the process that runs its model."""
