"""Native guests' programs, each one file that its guest runs."""
