"""From a video file to an answer: encode, reduce, assemble the prompt, prefill, decode; every stage is timed."""
