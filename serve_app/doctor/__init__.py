"""What is wrong with a machine, or behind a log: named cause, mend and source."""
