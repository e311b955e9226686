"""Speed, measured beside peers in turns."""
