"""What Qwen2.5-VL and Qwen3-VL share: configuration, vision tower and model."""
