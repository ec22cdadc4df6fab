"""What was measured with main.py: does GAAF help, why, and what does it cost."""
