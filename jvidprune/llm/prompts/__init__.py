"""How each family writes a prompt with videos in it: templates, slots and positions."""
