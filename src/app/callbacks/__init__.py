"""What happens around training: one Lightning callback per file."""
