"""Small worlds and handles that several tests share."""
