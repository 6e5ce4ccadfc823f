"""Pictures of what a reducer did: overlays on the frames, contact sheets, films and a self-contained page."""
