"""What a folder of other people's data is: each format looks at it, and says how sure it is, and why."""
