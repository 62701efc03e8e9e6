"""The devices of a federation: their certificates, their inventory, and how one comes in and goes."""
