"""What every host's wrapper needs and no host knows. Standard library only."""
