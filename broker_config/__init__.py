"""The topology as data, RabbitMQ's configuration, and the transport that both roles share."""

if __name__ != "fedmq.broker_config":
    raise ImportError(f"import fedmq.broker_config, not {__name__}: a module must not be loaded under two names")
