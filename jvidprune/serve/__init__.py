"""A local page to look and try: one video, one question, several methods side by side, their tokens on the frames."""
