"""Updates: what is checked when one arrives, and what is believed of it."""
