"""Golden files of the reference implementations, run through the port: one module a method, `core` holds the frame."""
