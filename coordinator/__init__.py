"""The coordinator: pure strategies and decisions, the run's state and its audit, and the service around them."""

if __name__ != "fedmq.coordinator":
    raise ImportError(f"import fedmq.coordinator, not {__name__}: a module must not be loaded under two names")
