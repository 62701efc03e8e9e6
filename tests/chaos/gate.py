"""Holds a participant's training up until a test lets it go on, without anybody's sleeping (see app.py)."""

import os


class Gate:
    """Made before the training that it is to hold up; later trainings of the participant pass when it is open."""

    def __init__(self, federation, participant):
        self._path = federation.folder / f"gate-{participant}"
        os.mkfifo(self._path)
        self._handle = None

    def reached(self):
        """Returns once a training stands before it."""
        self._handle = os.open(self._path, os.O_WRONLY)
        return self

    def open(self):
        self._path.unlink()
        os.close(self._handle)
