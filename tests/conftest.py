"""What all tests need."""

import signal

# A shell starts background jobs with SIGINT ignored, and children inherit that. The tests of Ctrl-C need it heard; a
# handler set here is the default again in every child.
signal.signal(signal.SIGINT, signal.default_int_handler)
