"""Checkpoint folders: formats, tensor names, loading onto devices, export, and what is published on the hub."""
