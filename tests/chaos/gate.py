"""A gate that holds up a participant's training until a test lets it go on, without any sleeping (see app.py)."""

import os


class Gate:
    """Make it before the training that it must hold up. Later trainings of the participant pass when it is open."""

    def __init__(self, federation, participant):
        self._path = federation.folder / f"gate-{participant}"
        os.mkfifo(self._path)
        self._handle = None

    def reached(self):
        """Wait until a training stands before the gate."""
        self._handle = os.open(self._path, os.O_WRONLY)
        return self

    def open(self):
        self._path.unlink()
        os.close(self._handle)
