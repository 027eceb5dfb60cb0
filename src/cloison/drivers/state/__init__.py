"""Where the system's records live. Interface: ``base``; driver: SQLite."""
