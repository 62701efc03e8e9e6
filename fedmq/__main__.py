"""`python -m fedmq`, the same as `fedmq`."""

from fedmq.cli.cli import main

if __name__ == "__main__":
    main()
