"""Looking at maps and rating them, on pages that a server on this machine answers, or in a file of their own."""
