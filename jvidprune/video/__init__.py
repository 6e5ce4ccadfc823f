"""Video in: decoding, frame sampling, resampling and normalising as the backbones' references do.

Host-side numpy; PyAV is imported where a file is opened. `decode` reads files: `container` opens them, `index` numbers
their frames, `timing`, `display` and `ends` say when and how each is shown and whether all are there, `pictures` reads
what is no film. `sampling` and `wish` pick frames, `resize` and `preprocess` make pixels of them, `encode` writes
files.
"""
