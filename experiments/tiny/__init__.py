"""How the embedded model was made: its data, losses, network and recipe. `experiments/train_tiny.py` runs it."""
