"""The federation file: it is read, overridden by flags and environment, and checked."""
