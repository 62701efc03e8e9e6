"""`python -m fedmq`, the same as `fedmq`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        # A user's numpy.py or queue.py in the current folder must not take the place of the real one.
        sys.path.append(sys.path.pop(0))
    from fedmq.cli.start import main

    main()
