"""What serves, and how it goes, from metrics endpoints alone."""
