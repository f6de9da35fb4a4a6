"""Task files, and the scripts that make and check them."""
