"""What a person starts from the command line."""
