"""The participant: the trainer protocol, the Keras trainer, the pure agent, its spool, and the service around them."""

if __name__ != "fedmq.participant":
    raise ImportError(f"import fedmq.participant, not {__name__}: a module must not be loaded under two names")
