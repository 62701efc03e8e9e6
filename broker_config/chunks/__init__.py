"""Payloads that are too large for one message: how both roles send and receive them."""
