"""Bridges to other tools; each tool imports its own, and nothing here is needed for the rest of the package."""
