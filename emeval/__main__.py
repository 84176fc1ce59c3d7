"""`python -m emeval`."""

from emeval.cli.app import main

if __name__ == "__main__":
    main()
