"""`python -m pccl.cli`, for a checkout without the entry point."""

from pccl.cli import main

main()
