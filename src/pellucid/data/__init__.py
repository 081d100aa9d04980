"""Images to explain: from files, tables and libraries, and procedural ones."""
