"""What runs behind the walls: scripts of the standard library alone."""
