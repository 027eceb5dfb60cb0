"""Ways out of a chain of netvms; the contract is ``base``."""
