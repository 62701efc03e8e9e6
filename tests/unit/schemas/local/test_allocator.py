"""Memory of freed payloads, in a process of its own."""

import subprocess
import sys

import pytest

THREADS = """
import sys, threading
import numpy as np, psutil
from fedmq.schemas.local.allocator import give_back, one_place_for_threads

if sys.argv[1] == "one place":
    one_place_for_threads()
before = psutil.Process().memory_info().rss

def work():
    for size in (30_000_000, 29_000_000, 28_000_000):
        np.ones(size, np.uint8)

thread = threading.Thread(target=work)
thread.start()
thread.join()
give_back()
print(round((psutil.Process().memory_info().rss - before) / 1e6))
"""


@pytest.mark.parametrize(("how", "kept"), [("one place", range(-5, 6)), ("as glibc has it", range(20, 63))])
def test_memory_that_a_thread_has_freed_is_given_back(how, kept):
    done = subprocess.run([sys.executable, "-c", THREADS, how], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) in kept
