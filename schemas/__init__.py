"""The wire contract: messages, tensor payloads, the msgpack codec and the error tree. `local` has the machine
beneath."""

if __name__ != "fedmq.schemas":
    raise ImportError(f"import fedmq.schemas, not {__name__}: a module must not be loaded under two names")
