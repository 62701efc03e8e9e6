"""The run's folder on disk: checkpoints, archive and ledger."""
