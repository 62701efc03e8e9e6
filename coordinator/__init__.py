"""Strategies and the decision core (pure), checkpoint and ledger, and the service around them."""

if __name__ != "fedmq.coordinator":
    raise ImportError(f"import fedmq.coordinator, not {__name__}: a module must not be loaded under two names")
