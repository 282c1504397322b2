"""What happened: request frames, which pass is which, marks turned into records."""
