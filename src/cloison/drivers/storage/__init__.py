"""Where volumes live. Interface: ``base``; first driver: qcow2 files."""
