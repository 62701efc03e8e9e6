"""The run's folder on disk: checkpoints, archive, epochs and ledger."""
