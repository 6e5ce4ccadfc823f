"""Ask a video: frames to tokens, tokens to a prompt, the prompt to an answer."""
