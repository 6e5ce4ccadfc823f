"""The generated benchmark: moving shapes, questions whose answers are known, and its export as files."""
