"""What speaks SMTP for a virtual host."""
