"""What runs machines. Interface: ``base``; first driver: QEMU."""
