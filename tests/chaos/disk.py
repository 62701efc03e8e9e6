"""A small disk that can be filled, enlarged and made read-only."""

import contextlib
import subprocess

NO_MOUNT = "NO MOUNT: this user may not mount a tmpfs, so only unit tests cover full and read-only disks"


class Disk:
    """A tmpfs of some kilobytes."""

    def __init__(self, folder):
        self.folder = folder
        self.folder.mkdir()
        self._mounted = []
        self._mount(folder, "-t", "tmpfs", "-o", "size=64k", "tmpfs")

    def resize(self, kilobytes):
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", self.folder], check=True, capture_output=True)

    def fill(self):
        """Fill the disk until not one more byte fits."""
        with (self.folder / "filler").open("ab", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))

    def make_room(self):
        (self.folder / "filler").unlink()

    def make_read_only(self, folder):
        """Refuse writes to whatever is opened in the folder from now on."""
        self._mount(folder, "--bind", folder)
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True, capture_output=True)

    def make_writable(self):
        subprocess.run(["umount", "-l", self._mounted.pop()], check=True, capture_output=True)

    def close(self):
        while self._mounted:
            self.make_writable()

    def _mount(self, folder, *how):
        subprocess.run(["mount", *how, folder], check=True, capture_output=True)
        self._mounted.append(folder)
