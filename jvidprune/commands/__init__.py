"""What the verbs of the command line do: run a model with progress, draw, and print for people."""
