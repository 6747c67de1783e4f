"""What people look at: measured rows and pictures."""
