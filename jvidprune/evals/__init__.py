"""How good is it: questions about videos, sweeps of methods and ratios over them, what is recorded, and the tables."""
