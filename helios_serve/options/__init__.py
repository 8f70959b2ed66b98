"""What can be asked for and set, each option declared once."""
