"""`python -m openclaw_opt`."""

from openclaw_opt.cli import main

main()
