"""`python -m exoalign`."""

from exoalign.cli import main

main()
