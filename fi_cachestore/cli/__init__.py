"""The command line: thin commands over the API. Data go to stdout, everything else to stderr."""
