"""What an endpoint is asked, and what it answers."""
