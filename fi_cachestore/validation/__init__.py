"""Trust: from what two processes saw to what may be served."""
