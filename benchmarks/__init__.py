"""What this package costs, beside what its users would otherwise write. Not shipped; README.md tells more."""
