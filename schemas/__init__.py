"""The wire contract: messages, tensor payloads, the msgpack codec and the error tree; and what both roles stand on."""

if __name__ != "fedmq.schemas":
    raise ImportError(f"import fedmq.schemas, not {__name__}: a module must not be loaded under two names")
