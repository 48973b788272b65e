"""Short programs of users who bring their own tools."""
