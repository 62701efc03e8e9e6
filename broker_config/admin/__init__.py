"""The broker's administration: users, rights, limits, and objects that no device may make. Two backends."""
