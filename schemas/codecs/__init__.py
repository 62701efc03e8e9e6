"""Codecs of updates: fewer bytes for the same tensors, one file a codec (docs/decisions/0046)."""
