"""Verbs: the only room that changes things. May import: model, wire and the interfaces of the drivers."""
