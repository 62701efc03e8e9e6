"""Outgoing: tasks, receipts, notices and answers about certificates, and the lines about discards."""
