"""What device this is, and how fast it can be."""
