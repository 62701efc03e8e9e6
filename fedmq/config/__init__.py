"""The federation file: read, overridden by flags and environment, checked."""
