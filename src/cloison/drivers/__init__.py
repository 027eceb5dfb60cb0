"""The outside world, each family behind an interface in its ``base`` module. May import: model, wire."""
