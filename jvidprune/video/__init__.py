"""Video in: decoding, frame sampling, resampling and normalising as the backbones' references do, generated clips.

Host-side numpy; PyAV is imported where a file is opened. `decode` reads files, `sampling` picks frames, `resize` and
`preprocess` make pixels of them, `clips` draws clips and writes them as files.
"""
