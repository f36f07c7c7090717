"""What a user may choose, checked; a sentence under every field."""
