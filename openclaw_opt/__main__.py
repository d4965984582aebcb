"""`python -m openclaw_opt`."""

from openclaw_opt.cli import main

if __name__ == "__main__":
    main()
