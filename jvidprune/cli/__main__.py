"""`python -m jvidprune.cli`."""

from jvidprune.cli import main

main()
