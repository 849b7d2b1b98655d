"""A small character language model in NumPy, trained by peers that come and go. See examples/quickstart.sh."""
